//! A document as a tree whose elements know where they stand in the text, so that a change of one element
//! leaves the rest of the text as it was.

use std::fmt::Write as _;
use std::ops::Range;

use roxmltree::{Document, Node};

/// Deeper than any document of libvirt's, shallow enough for any stack.
const MAX_DEPTH: usize = 128;

/// One element. Of other namespaces than libvirt's own it is read, but never printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) name: String,
    pub(super) attributes: Vec<Attribute>,
    pub(super) children: Vec<Element>,
    pub(super) text: String,
    /// Where its start tag ends.
    pub(super) tag_end: usize,
    /// Where all of it stands.
    pub(super) span: Range<usize>,
}

/// One attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attribute {
    name: String,
    value: String,
    span: Range<usize>,
}

/// A change of a text: what to put in the place of a part of it.
pub(super) type Edit = (Range<usize>, String);

impl Element {
    /// Reads the one element that a document is.
    pub(super) fn parse(xml: &str) -> Result<Self, String> {
        let document = Document::parse(xml).map_err(|error| error.to_string())?;
        Self::of(document.root_element(), xml, MAX_DEPTH)
    }

    fn of(node: Node<'_, '_>, xml: &str, depth: usize) -> Result<Self, String> {
        let name = node.tag_name().name().to_owned();
        let deeper = depth.checked_sub(1).ok_or_else(|| format!("<{name}> is nested too deeply"))?;
        let span = node.range();
        let own = xml.get(span.clone()).unwrap_or_default();
        let tag_end = match node.first_child() {
            Some(child) => child.range().start,
            None if own.ends_with("/>") => span.end,
            None => span.start + own.rfind("</").unwrap_or_default(),
        };
        let attribute = |attribute: roxmltree::Attribute<'_, '_>| Attribute {
            name: attribute.name().to_owned(),
            value: attribute.value().to_owned(),
            span: attribute.range(),
        };
        Ok(Self {
            name,
            attributes: node.attributes().map(attribute).collect(),
            children: node
                .children()
                .filter(Node::is_element)
                .map(|child| Self::of(child, xml, deeper))
                .collect::<Result<_, _>>()?,
            text: node.text().unwrap_or_default().to_owned(),
            tag_end,
            span,
        })
    }

    /// An element that stands in no text yet.
    pub(super) fn made(name: &str, attributes: &[(&str, &str)], children: Vec<Self>) -> Self {
        let attribute = |(name, value): &(&str, &str)| Attribute {
            name: (*name).to_owned(),
            value: (*value).to_owned(),
            span: 0..0,
        };
        Self {
            name: name.to_owned(),
            attributes: attributes.iter().map(attribute).collect(),
            children,
            text: String::new(),
            tag_end: 0,
            span: 0..0,
        }
    }

    /// The value of an attribute.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|attribute| attribute.name == name)
            .map(|attribute| attribute.value.as_str())
    }

    /// The first child of this name.
    pub(super) fn child(&self, name: &str) -> Option<&Self> {
        self.children.iter().find(|child| child.name == name)
    }

    /// The children of the child of this name.
    pub(super) fn children_of(&self, name: &str) -> &[Self] {
        self.child(name).map(|child| child.children.as_slice()).unwrap_or_default()
    }

    /// Whether it is one tag: `<name/>`.
    pub(super) fn is_one_tag(&self) -> bool {
        self.tag_end == self.span.end
    }

    /// The edit that sets an attribute, or takes it away.
    pub(super) fn set(&self, name: &str, value: Option<&str>) -> Edit {
        let start = self.span.start + 1 + self.name.len();
        let place = match self.attributes.iter().position(|attribute| attribute.name == name) {
            Some(at) => {
                let before = at.checked_sub(1).and_then(|before| self.attributes.get(before));
                let end = self.attributes.get(at).map_or(start, |attribute| attribute.span.end);
                before.map_or(start, |before| before.span.end)..end
            }
            None => {
                let end = self.attributes.last().map_or(start, |last| last.span.end);
                end..end
            }
        };
        (place, value.map(|value| format!(" {name}='{}'", escape(value))).unwrap_or_default())
    }

    /// The edit that takes it away, with the indentation and the line break before it.
    pub(super) fn removed_from(&self, text: &str) -> Edit {
        let before = text.get(..self.span.start).unwrap_or_default();
        let line = before.trim_end_matches([' ', '\t']);
        (line.strip_suffix('\n').unwrap_or(line).len()..self.span.end, String::new())
    }

    /// All of it as libvirt prints it, in lines indented by `indent` spaces.
    pub(super) fn print(&self, indent: usize) -> String {
        let (pad, text) = (" ".repeat(indent), self.text.trim());
        let mut tag = format!("{pad}<{}", self.name);
        for Attribute { name, value, .. } in &self.attributes {
            // Writing to a String cannot fail.
            let _ = write!(tag, " {name}='{}'", escape(value));
        }
        if !self.children.is_empty() {
            let children: String = self.children.iter().map(|child| child.print(indent + 2)).collect();
            format!("{tag}>\n{children}{pad}</{}>\n", self.name)
        } else if text.is_empty() {
            format!("{tag}/>\n")
        } else {
            format!("{tag}>{}</{}>\n", escape(text), self.name)
        }
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Makes changes that do not overlap.
pub(super) fn replace(text: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let mut result = String::with_capacity(text.len());
    let mut done = 0;
    for (range, new) in edits {
        result.push_str(text.get(done..range.start).unwrap_or_default());
        result.push_str(&new);
        done = range.end;
    }
    result.push_str(text.get(done..).unwrap_or_default());
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<a x='1' xmlns:q='u'>\n  <b>t &lt; &amp;</b>\n  <c/>\n  <d></d>\n</a>\n";

    #[test]
    fn an_edit_leaves_the_rest_as_it_was() {
        let a = Element::parse(XML).unwrap();
        let edited = |edit: Edit| replace(XML, vec![edit]);
        assert_eq!(edited(a.set("x", None)), XML.replace(" x='1'", ""));
        assert_eq!(edited(a.set("x", Some("2"))), XML.replace("x='1'", "x='2'"));
        assert_eq!(edited(a.set("y", Some("<"))), XML.replace("x='1'", "x='1' y='&lt;'"));
        let c = a.child("c").unwrap();
        assert_eq!(edited(c.set("y", Some("'"))), XML.replace("<c/>", "<c y='&apos;'/>"));
        assert_eq!(edited(c.removed_from(XML)), XML.replace("\n  <c/>", ""));
        assert!(c.is_one_tag());
        let d = a.child("d").unwrap();
        assert!(!d.is_one_tag());
        assert_eq!(&XML[d.tag_end..d.span.end], "</d>");
        assert_eq!(a.child("b").unwrap().print(2), "  <b>t &lt; &amp;</b>\n");
    }

    #[test]
    fn what_is_not_well_formed_is_refused() {
        for text in
            ["", "<a>", "<a></b>", "<a x=1/>", "<a>&nope;</a>", "<!DOCTYPE a><a/>", "<a x='1' x='2'/>"]
        {
            assert!(Element::parse(text).is_err(), "{text}");
        }
        let deep = 10_000;
        assert!(Element::parse(&format!("{}{}", "<a>".repeat(deep), "</a>".repeat(deep))).is_err());
    }
}
