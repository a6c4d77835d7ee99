//! A document as a tree of its elements: read by quick-xml, changed, and written by quick-xml as libvirt writes it.
//!
//! Comments and processing instructions are left out, as libvirt leaves them out. The only entities are the five that
//! XML has by itself: a document with a type definition is refused.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io;

use quick_xml::escape::{escape, resolve_predefined_entity};
use quick_xml::events::attributes::Attributes;
use quick_xml::events::{BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer, XmlVersion};

/// Deeper than any document of libvirt's, shallow enough for any stack.
const MAX_DEPTH: usize = 128;

/// One element, with what it borrows from the text that it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    /// Its name as it is written, with the prefix.
    name: &'a str,
    /// The namespace that it is in; libvirt's own elements are in none.
    namespace: Option<&'a str>,
    /// Names and values, in the order of the text.
    attributes: Vec<(&'a str, Cow<'a, str>)>,
    /// The elements in it, in the order of the text.
    pub(crate) children: Vec<Self>,
    /// Its own text, with the blanks around it.
    text: Cow<'a, str>,
    /// Where its start tag begins in the text that it was read from: no other element begins there.
    place: usize,
}

impl<'a> Element<'a> {
    /// Reads the one element that a document is.
    ///
    /// # Errors
    /// What makes it no well-formed document, with the line.
    pub(crate) fn parse(xml: &'a str) -> Result<Self, String> {
        Parser::new(xml).parse().map_err(|(place, reason)| format!("{reason} (line {})", line(xml, place)))
    }

    /// An element that stands in no text yet.
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

    /// The same with these elements in it.
    pub(crate) fn with(self, children: impl IntoIterator<Item = Self>) -> Self {
        Self { children: children.into_iter().collect(), ..self }
    }

    /// Its name without the prefix.
    pub(crate) fn local_name(&self) -> &str {
        self.name.rsplit(':').next().unwrap_or_default()
    }

    /// The namespace that it is in.
    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace
    }

    /// Whether it is libvirt's own element of this name. Elements of namespaces are others.
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

    /// Sets an attribute, or takes it away.
    pub(crate) fn set(&mut self, name: &'static str, value: Option<&str>) {
        let known = self.attributes.iter().position(|(known, _)| *known == name);
        match (known.and_then(|at| self.attributes.get_mut(at)), value) {
            (Some((_, old)), Some(value)) => *old = value.to_owned().into(),
            (None, Some(value)) => self.attributes.push((name, value.to_owned().into())),
            (_, None) => self.attributes.retain(|(known, _)| *known != name),
        }
    }

    /// Sets its own text.
    pub(crate) fn set_text(&mut self, text: &str) {
        self.text = text.to_owned().into();
    }

    /// Where it stands in the text that it was read from.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// The names on the way from it to the element in it that begins at this place, its own first.
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

    /// The document that it is, as libvirt writes it.
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

    /// Takes in a part of its text.
    fn add_text(&mut self, part: Cow<'a, str>) {
        let blank = |text: &str| text.trim_ascii().is_empty();
        if self.text.is_empty() {
            self.text = part;
        } else if !blank(&part) || !blank(&self.text) && self.children.is_empty() {
            self.text.to_mut().push_str(&part);
        }
    }
}

/// The text without a byte order mark: places are counted from there.
fn unmarked(xml: &str) -> &str {
    xml.strip_prefix('\u{feff}').unwrap_or(xml)
}

/// The line of a place in a text, from 1.
pub(super) fn line(xml: &str, place: usize) -> usize {
    unmarked(xml).bytes().take(place).filter(|byte| *byte == b'\n').count() + 1
}

/// What makes a text no well-formed document, and where.
type Malformed = (usize, String);

/// A prefix (empty for the default namespace) that stands for a namespace.
struct Binding<'a> {
    /// How many elements were open around the one that says it.
    depth: usize,
    prefix: &'a str,
    namespace: &'a str,
}

struct Parser<'a> {
    xml: &'a str,
    reader: Reader<&'a [u8]>,
    /// The elements that have begun and not ended, each in the one before it.
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
            return Err((place, "XML has no such character".to_owned()));
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
                    // quick-xml has compared the names.
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
            return Err((element.place, format!("<{}> has no end", element.name)));
        }
        self.root.ok_or_else(|| (0, "there is no element".to_owned()))
    }

    fn position(&self) -> usize {
        usize::try_from(self.reader.buffer_position()).unwrap_or(self.xml.len())
    }

    /// The element whose start tag begins at `place`, has a name of so many bytes, and ends in so many (`>` or `/>`).
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
                return fail(&"there is no blank before it");
            }
            if attributes.iter().any(|(known, _)| *known == key) {
                return fail(&"it is there twice");
            }
            let value = match attribute.normalized_value(XmlVersion::Explicit1_0) {
                Ok(value) => value,
                Err(error) => return fail(&error),
            };
            if raw.contains('<') || matches!(&value, Cow::Owned(value) if not_xml(value).is_some()) {
                return fail(&"XML does not allow such a character there");
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

    /// Puts an element that has ended where it belongs.
    fn close(&mut self, element: Element<'a>) -> Result<(), String> {
        let depth = self.open.len();
        while self.bindings.last().is_some_and(|binding| binding.depth >= depth) {
            self.bindings.pop();
        }
        match self.open.last_mut() {
            Some(parent) => parent.children.push(element),
            None if self.root.is_none() => self.root = Some(element),
            None => return Err(format!("<{}> follows the document's root", element.name)),
        }
        Ok(())
    }

    fn text(&mut self, text: Cow<'a, str>) -> Result<(), String> {
        match self.open.last_mut() {
            Some(element) => element.add_text(text),
            None if text.trim_ascii().is_empty() => {}
            None => return Err("there is text outside of the document's root".to_owned()),
        }
        Ok(())
    }
}

/// Where the first character is that XML 1.0 does not have.
fn not_xml(text: &str) -> Option<usize> {
    let control = |byte: u8| byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r');
    // The two others begin with this byte in UTF-8. Whole texts are looked through faster than up to a place.
    let suspect = text.bytes().fold(false, |found, byte| found | control(byte) | (byte == 0xef));
    let is = |character: char| match character {
        '\t' | '\n' | '\r' => false,
        '\0'..' ' | '\u{fffe}' | '\u{ffff}' => true,
        _ => false,
    };
    if suspect { text.find(is) } else { None }
}

/// Refuses what is no name of an element or attribute.
fn check_name(name: &str) -> Result<(), String> {
    let inner =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':') || byte >= 0x80;
    let first = |byte: &u8| !byte.is_ascii_digit() && !matches!(byte, b'-' | b'.');
    if name.bytes().all(inner) && name.as_bytes().first().is_some_and(first) {
        Ok(())
    } else {
        Err(format!("`{name}` is no name of an element or attribute"))
    }
}

#[cfg(test)]
mod tests;
