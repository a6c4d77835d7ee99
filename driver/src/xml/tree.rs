//! A document as a tree of its elements. quick-xml reads and writes it, in the form in which libvirt writes documents.
//!
//! Comments and processing instructions are dropped, as in libvirt. Only XML's five predefined entities and character
//! references are allowed; a document with a document type is refused.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io;

use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::attributes::Attributes;
use quick_xml::events::{BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};

/// The deepest nesting that is accepted. It is deeper than any libvirt document and small enough for any stack.
const MAX_DEPTH: usize = 128;

/// One element. It borrows from the text that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    /// The name as written, with the prefix.
    name: &'a str,
    /// The namespace; libvirt's own elements have none.
    namespace: Option<&'a str>,
    /// Names and values, in document order.
    attributes: Vec<(&'a str, Cow<'a, str>)>,
    /// The child elements, in document order.
    pub(crate) children: Vec<Self>,
    /// The element's own text, with surrounding white space.
    text: Cow<'a, str>,
    /// The byte offset of the start tag in the text that it was read from. It identifies the element.
    place: usize,
}

impl<'a> Element<'a> {
    /// Parses a document and returns its root element.
    ///
    /// # Errors
    /// The reason and the line when the document is not well-formed.
    pub(crate) fn parse(xml: &'a str) -> Result<Self, String> {
        Parser::new(xml).parse().map_err(|(place, reason)| format!("{reason} (line {})", line(xml, place)))
    }

    /// Makes a new element.
    pub(crate) fn new(name: &'static str, attributes: &[(&'static str, &str)]) -> Self {
        let owned = |(name, value): &(&'static str, &str)| (*name, (*value).to_owned().into());
        Self {
            name,
            namespace: None,
            attributes: attributes.iter().map(owned).collect(),
            children: Vec::new(),
            text: Cow::default(),
            place: 0,
        }
    }

    /// Returns the element with these children.
    pub(crate) fn with(self, children: impl IntoIterator<Item = Self>) -> Self {
        Self { children: children.into_iter().collect(), ..self }
    }

    /// The name without the prefix.
    pub(crate) fn local_name(&self) -> &str {
        self.name.rsplit(':').next().unwrap_or_default()
    }

    /// The namespace.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace
    }

    /// Whether it is libvirt's own element of this name, which is in no namespace.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.namespace.is_none() && self.name == name
    }

    /// The value of an attribute.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_ref())
    }

    /// Its own text without the blanks around it.
    pub(crate) fn text(&self) -> &str {
        self.text.trim()
    }

    /// The first element of this name in it.
    pub(crate) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.is(name))
    }

    /// The same, to be changed.
    pub(crate) fn child_mut(&mut self, name: &str) -> Option<&mut Self> {
        self.children.iter_mut().find(|child| child.is(name))
    }

    /// It and every element in it, in the order of the text.
    pub(crate) fn descendants(&self) -> impl Iterator<Item = &Self> {
        let mut next = vec![self];
        std::iter::from_fn(move || {
            let element = next.pop()?;
            next.extend(element.children.iter().rev());
            Some(element)
        })
    }

    /// Sets or removes an attribute.
    pub(crate) fn set(&mut self, name: &'static str, value: Option<&str>) {
        let known = self.attributes.iter().position(|(known, _)| *known == name);
        match (known.and_then(|at| self.attributes.get_mut(at)), value) {
            (Some((_, old)), Some(value)) => *old = value.to_owned().into(),
            (None, Some(value)) => self.attributes.push((name, value.to_owned().into())),
            (_, None) => self.attributes.retain(|(known, _)| *known != name),
        }
    }

    /// Sets the element's own text.
    pub(crate) fn set_text(&mut self, text: &str) {
        self.text = text.to_owned().into();
    }

    /// The byte offset of the start tag in the text that it was read from.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// Returns the names of the elements from this one down to the one that begins at `place`.
    pub(super) fn path_to(&self, place: usize) -> Vec<&str> {
        let mut path = vec![self.local_name()];
        let mut element = self;
        while element.place != place
            && let Some(child) = element.children.iter().rev().find(|child| child.place <= place)
        {
            path.push(child.local_name());
            element = child;
        }
        path
    }

    /// Writes the element as a document, in libvirt's form.
    pub(crate) fn write(&self) -> String {
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        // Writing to memory cannot fail.
        let _ = self.write_to(&mut writer);
        let mut written = String::from_utf8(writer.into_inner()).unwrap_or_default();
        written.push('\n');
        written
    }

    fn write_to(&self, writer: &mut Writer<Vec<u8>>) -> io::Result<()> {
        let mut tag = self.name.to_owned();
        for (name, value) in &self.attributes {
            // Writing to a String cannot fail.
            let _ = write!(tag, " {name}='{}'", escape(value.as_ref()));
        }
        let tag = BytesStart::from_content(tag, self.name.len());
        let has_text = !self.text().is_empty();
        if self.children.is_empty() && !has_text {
            return writer.write_event(Event::Empty(tag));
        }
        writer.write_event(Event::Start(tag.borrow()))?;
        if has_text {
            writer.write_event(Event::Text(BytesText::new(&self.text)))?;
        }
        for child in &self.children {
            child.write_to(writer)?;
        }
        writer.write_event(Event::End(tag.to_end()))
    }

    /// Adds a part of the element's text. White space between child elements is dropped.
    fn add_text(&mut self, part: Cow<'a, str>) {
        let blank = |text: &str| text.trim_ascii().is_empty();
        if self.text.is_empty() {
            self.text = part;
        } else if !blank(&part) || !blank(&self.text) && self.children.is_empty() {
            self.text.to_mut().push_str(&part);
        }
    }
}

/// The text without a byte order mark. Byte offsets are counted from there.
fn unmarked(xml: &str) -> &str {
    xml.strip_prefix('\u{feff}').unwrap_or(xml)
}

/// The line number of a byte offset, from 1.
pub(super) fn line(xml: &str, place: usize) -> usize {
    unmarked(xml).bytes().take(place).filter(|byte| *byte == b'\n').count() + 1
}

/// The byte offset and the reason why a text is not a well-formed document.
type Malformed = (usize, String);

/// A namespace declaration; the prefix is empty for the default namespace.
struct Binding<'a> {
    /// How many elements were open around the element that declares it.
    depth: usize,
    prefix: &'a str,
    namespace: &'a str,
}

struct Parser<'a> {
    xml: &'a str,
    reader: Reader<&'a [u8]>,
    /// The open elements, from the outermost to the innermost.
    open: Vec<Element<'a>>,
    bindings: Vec<Binding<'a>>,
    root: Option<Element<'a>>,
}

impl<'a> Parser<'a> {
    fn new(xml: &'a str) -> Self {
        let xml = unmarked(xml);
        Self { xml, reader: Reader::from_str(xml), open: Vec::new(), bindings: Vec::new(), root: None }
    }

    fn parse(mut self) -> Result<Element<'a>, Malformed> {
        if let Some(place) = not_xml(self.xml) {
            return Err((place, "character not allowed in XML".to_owned()));
        }
        loop {
            let place = self.position();
            let event = self.reader.read_event().map_err(|error| {
                (usize::try_from(self.reader.error_position()).unwrap_or_default(), error.to_string())
            })?;
            let malformed = |reason: String| (place, reason);
            match event {
                Event::Start(tag) => {
                    let element = self.element(place, tag.name().0.len(), 1).map_err(malformed)?;
                    if self.open.len() >= MAX_DEPTH {
                        return Err((place, format!("<{}> is nested too deeply", element.name)));
                    }
                    self.open.push(element);
                }
                Event::Empty(tag) => {
                    let element = self.element(place, tag.name().0.len(), 2).map_err(malformed)?;
                    self.close(element).map_err(malformed)?;
                }
                Event::End(_) => {
                    // quick-xml has checked that the names match.
                    if let Some(element) = self.open.pop() {
                        self.close(element).map_err(malformed)?;
                    }
                }
                Event::Text(text) => self.text(text.xml10_content()).map_err(malformed)?,
                Event::CData(text) => self.text(text.xml10_content()).map_err(malformed)?,
                Event::GeneralRef(reference) => {
                    let text =
                        match reference.resolve_char_ref().map_err(|error| malformed(error.to_string()))? {
                            Some(character) => Some(character.to_string().into()),
                            None => resolve_predefined_entity(&reference).map(Cow::Borrowed),
                        };
                    let unknown = || malformed(format!("unknown entity &{};", &*reference));
                    let text = text.filter(|text| not_xml(text).is_none()).ok_or_else(unknown)?;
                    self.text(text).map_err(malformed)?;
                }
                Event::DocType(_) => return Err(malformed("a document type is not allowed".to_owned())),
                Event::Comment(_) | Event::PI(_) | Event::Decl(_) => {}
                Event::Eof => break,
            }
        }
        if let Some(element) = self.open.last() {
            return Err((element.place, format!("<{}> is not closed", element.name)));
        }
        self.root.ok_or_else(|| (0, "the document has no element".to_owned()))
    }

    fn position(&self) -> usize {
        usize::try_from(self.reader.buffer_position()).unwrap_or(self.xml.len())
    }

    /// Reads the start tag at `place`. `name` is the length of its name in bytes, and `end` that of its end (`>` or
    /// `/>`).
    fn element(&mut self, place: usize, name: usize, end: usize) -> Result<Element<'a>, String> {
        let tag = self.xml.get(place + 1..self.position() - end).unwrap_or_default();
        let (name, rest) = tag.split_at_checked(name).unwrap_or_default();
        check_name(name)?;
        let mut attributes: Vec<(&str, Cow<'_, str>)> = Vec::new();
        for attribute in Attributes::new(rest, 0).with_checks(false) {
            let attribute = attribute.map_err(|error| format!("<{name}>: {error}"))?;
            let (key, raw) = (attribute.key.0, &attribute.value);
            let fail = |reason: &dyn Display| Err(format!("<{name}>: {key}: {reason}"));
            check_name(key)?;
            let before = key.as_ptr().addr().wrapping_sub(rest.as_ptr().addr()).wrapping_sub(1);
            if !rest.as_bytes().get(before).is_some_and(u8::is_ascii_whitespace) {
                return fail(&"expected white space before the attribute");
            }
            if attributes.iter().any(|(known, _)| *known == key) {
                return fail(&"duplicate attribute");
            }
            let value = match attribute.normalized_value(XmlVersion::Explicit1_0) {
                Ok(value) => value,
                Err(error) => return fail(&error),
            };
            if raw.contains('<') || matches!(&value, Cow::Owned(value) if not_xml(value).is_some()) {
                return fail(&"character not allowed in an attribute value");
            }
            let prefix = if key == "xmlns" { Some("") } else { key.strip_prefix("xmlns:") };
            if let (Some(prefix), Cow::Borrowed(namespace)) = (prefix, raw) {
                self.bindings.push(Binding { depth: self.open.len(), prefix, namespace });
            }
            attributes.push((key, value));
        }
        let prefix = name.split_once(':').map_or("", |(prefix, _)| prefix);
        let binding = self.bindings.iter().rev().find(|binding| binding.prefix == prefix);
        let namespace = binding.map(|binding| binding.namespace).filter(|namespace| !namespace.is_empty());
        if namespace.is_none() && !prefix.is_empty() {
            return Err(format!("<{name}>: no namespace has the prefix {prefix}"));
        }
        Ok(Element { name, namespace, attributes, children: Vec::new(), text: Cow::default(), place })
    }

    /// Adds a complete element to its parent, or makes it the root.
    fn close(&mut self, element: Element<'a>) -> Result<(), String> {
        let depth = self.open.len();
        while self.bindings.last().is_some_and(|binding| binding.depth >= depth) {
            self.bindings.pop();
        }
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None if self.root.is_none() => self.root = Some(element),
            None => return Err(format!("<{}> follows the document's root element", element.name)),
        }
        Ok(())
    }

    fn text(&mut self, text: Cow<'a, str>) -> Result<(), String> {
        match self.open.last_mut() {
            Some(element) => element.add_text(text),
            None if text.trim_ascii().is_empty() => {}
            None => return Err("text outside of the document's root element".to_owned()),
        }
        Ok(())
    }
}

/// Returns the byte offset of the first character that XML 1.0 does not allow.
fn not_xml(text: &str) -> Option<usize> {
    let control = |byte: u8| byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r');
    // U+FFFE and U+FFFF begin with the byte 0xef in UTF-8. A scan of all bytes without an early exit is faster.
    let suspect = text.bytes().fold(false, |found, byte| found | control(byte) | (byte == 0xef));
    let is = |character: char| match character {
        '\t' | '\n' | '\r' => false,
        '\0'..' ' | '\u{fffe}' | '\u{ffff}' => true,
        _ => false,
    };
    if suspect { text.find(is) } else { None }
}

/// Checks that a text is a valid element or attribute name.
fn check_name(name: &str) -> Result<(), String> {
    let inner =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':') || byte >= 0x80;
    let first = |byte: &u8| !byte.is_ascii_digit() && !matches!(byte, b'-' | b'.');
    if name.bytes().all(inner) && name.as_bytes().first().is_some_and(first) {
        Ok(())
    } else {
        Err(format!("`{name}` is not a valid element or attribute name"))
    }
}

#[cfg(test)]
mod tests;
