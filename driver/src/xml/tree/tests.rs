use proptest::prelude::*;

use super::*;

const XML: &str = "<a x='1' xmlns:q='u'>\n  <b>t &lt; &amp;</b>\n  <q:c y='&apos;&quot;&gt;'/>\n  <d>\n    <e/>\n  </d>\n</a>\n";

#[test]
fn a_document_in_libvirts_form_is_written_unchanged() {
    assert_eq!(Element::parse(XML).unwrap().write(), XML);
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
    let mut count = 0;
    let folders =
        ["libvirt-11.3", "libvirt-12.9"].map(|version| ["domain", "nodedev"].map(|kind| (version, kind)));
    for (version, kind) in folders.into_iter().flatten() {
        for file in std::fs::read_dir(format!("{data}/{version}/{kind}")).unwrap() {
            let file = file.unwrap().path();
            if file.extension().is_some_and(|extension| extension == "xml") {
                let xml = std::fs::read_to_string(&file).unwrap();
                let written = Element::parse(&xml).unwrap().write();
                assert_eq!(written.trim_end(), xml.trim_end(), "{}", file.display());
                count += 1;
            }
        }
    }
    assert!(count >= 45, "{count}");
}

#[test]
fn a_change_keeps_the_rest_of_the_document() {
    let changed = |change: fn(&mut Element<'_>)| {
        let mut a = Element::parse(XML).unwrap();
        change(&mut a);
        a.write()
    };
    assert_eq!(changed(|a| a.set("x", None)), XML.replace(" x='1'", ""));
    assert_eq!(changed(|a| a.set("x", Some("2"))), XML.replace("x='1'", "x='2'"));
    assert_eq!(changed(|a| a.set("y", Some("<"))), XML.replace("'u'>", "'u' y='&lt;'>"));
    assert_eq!(changed(|a| a.child_mut("b").unwrap().set_text("&")), XML.replace("t &lt; &amp;", "&amp;"));
    assert_eq!(changed(|a| drop(a.children.remove(1))), XML.replace("\n  <q:c y='&apos;&quot;&gt;'/>", ""));
    let with = |a: &mut Element<'_>| {
        a.children.insert(0, Element::new("new", &[("n", "'")]).with([Element::new("leaf", &[])]));
    };
    let new = "  <new n='&apos;'>\n    <leaf/>\n  </new>\n";
    assert_eq!(changed(with), XML.replace("  <b>", &format!("{new}  <b>")));
}

#[test]
fn entities_and_cdata_become_text_and_comments_are_dropped() {
    let xml = "<?xml version='1.0'?><!-- a --><a>\n<b c='&#65;&#x42;\n&lt;'> x<!-- b -->&#x263A;<![CDATA[<&]]>\r\n </b></a><?p i?>";
    let a = Element::parse(xml).unwrap();
    let b = a.child("b").unwrap();
    assert_eq!((b.attribute("c"), b.text()), (Some("AB <"), "x\u{263a}<&"));
    let marked = format!("\u{feff}{XML}");
    let marked = Element::parse(&marked).unwrap();
    assert_eq!(marked.write(), XML);
    assert_eq!(line(XML, marked.child("b").unwrap().place()), 2);
}

#[test]
fn the_prefix_or_the_default_gives_the_namespace_of_an_element() {
    let xml = "<a xmlns:p='1'><p:b/><c xmlns='2'><d/><e xmlns=''/></c><p:f xmlns:p='3'/><p:g/></a>";
    let a = Element::parse(xml).unwrap();
    let found: Vec<_> = a.descendants().map(|element| (element.local_name(), element.namespace())).collect();
    let expected = [
        ("a", None),
        ("b", Some("1")),
        ("c", Some("2")),
        ("d", Some("2")),
        ("e", None),
        ("f", Some("3")),
        ("g", Some("1")),
    ];
    assert_eq!(found, expected);
    assert!(a.child("b").is_none() && a.child("c").is_none(), "elements in a namespace are not libvirt's");
}

#[test]
fn a_document_that_is_not_well_formed_is_refused_with_the_line() {
    for (text, reason) in [
        ("", "the document has no element (line 1)"),
        ("<?xml version='1.0'?>", "the document has no element (line 1)"),
        ("<a>\n<b>", "<b> is not closed (line 2)"),
        ("<a>\n</b>", "ill-formed document: expected `</a>`, but `</b>` was found (line 2)"),
        ("<a/>\n</a>", "ill-formed document: close tag `</a>` does not match any open tag (line 2)"),
        ("<a\nx=1/>", "<a>: position 3: attribute value must be enclosed in `\"` or `'` (line 1)"),
        ("<a x='1' x='2'/>", "<a>: x: duplicate attribute (line 1)"),
        ("<a x='1'y='2'/>", "<a>: y: expected white space before the attribute (line 1)"),
        ("<a>\n&nope;</a>", "unknown entity &nope; (line 2)"),
        ("<a>&#1;</a>", "unknown entity &#1; (line 1)"),
        ("<a>&#xD800;</a>", "is not a valid codepoint (line 1)"),
        ("<a x='&nope;'/>", "<a>: x: "),
        ("<a x='&#2;'/>", "<a>: x: character not allowed in an attribute value (line 1)"),
        ("<a x='<'/>", "<a>: x: character not allowed in an attribute value (line 1)"),
        ("<a>\n\u{1}</a>", "character not allowed in XML (line 2)"),
        ("<a>\u{ffff}</a>", "character not allowed in XML (line 1)"),
        ("<!DOCTYPE a><a/>", "a document type is not allowed (line 1)"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "a document type is not allowed (line 1)"),
        ("<a/>\n<b/>", "<b> follows the document's root element (line 2)"),
        ("<a/>\nb", "text outside of the document's root element (line 1)"),
        ("&lt;<a/>", "text outside of the document's root element (line 1)"),
        ("<p:a/>", "<p:a>: no namespace has the prefix p (line 1)"),
        ("<1/>", "`1` is not a valid element or attribute name (line 1)"),
        ("<a b$='1'/>", "`b$` is not a valid element or attribute name (line 1)"),
        ("<>", "`` is not a valid element or attribute name (line 1)"),
        ("<a", "syntax error: tag not closed: `>` not found before end of input (line 1)"),
    ] {
        let found = Element::parse(text).unwrap_err();
        assert!(found.contains(reason), "{text}: {found}");
    }
    let nested = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
    assert!(Element::parse(&nested(MAX_DEPTH)).is_ok());
    for depth in [MAX_DEPTH + 1, 100_000] {
        let found = Element::parse(&nested(depth)).unwrap_err();
        assert_eq!(found, "<a> is nested too deeply (line 1)");
    }
}

/// An element with children or with a text. Texts keep leading and trailing white space.
fn element() -> impl Strategy<Value = Element<'static>> {
    let names = prop::sample::select(vec!["a", "hostdev", "x-1", "_y", "z.\u{e9}"]);
    let value = prop_oneof!["\\PC{0,12}", "[-'\"<>&;:/= a-z{}%]{0,12}", Just("]]>&#39;<!--".to_owned())];
    let attributes =
        prop::collection::btree_map(prop::sample::select(vec!["p", "type", "q:r"]), value.clone(), 0..3);
    let text =
        prop_oneof![Just(String::new()), value.prop_filter("not blank", |text| !text.trim().is_empty())];
    let tag = (names, attributes).prop_map(|(name, attributes)| {
        let attributes: Vec<_> = attributes.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Element::new(name, &attributes)
    });
    let leaf = (tag.clone(), text).prop_map(|(mut element, text)| {
        element.set_text(&text);
        element
    });
    leaf.prop_recursive(4, 24, 4, move |inner| {
        (tag.clone(), prop::collection::vec(inner, 1..4))
            .prop_map(|(element, children)| element.with(children))
    })
}

/// Returns the element without the parts that only a parsed element has.
fn unplaced(element: Element<'_>) -> Element<'_> {
    let children = element.children.iter().cloned().map(unplaced).collect();
    let text = if element.text().is_empty() { Cow::default() } else { element.text.clone() };
    Element { place: 0, children, text, ..element }
}

proptest! {
    #[test]
    fn a_written_element_reads_back_unchanged(element in element()) {
        let written = element.write();
        let read = Element::parse(&written).unwrap();
        prop_assert_eq!(unplaced(read.clone()), element);
        prop_assert_eq!(read.write(), written);
    }

    #[test]
    fn every_element_is_found_by_its_byte_offset(element in element()) {
        let written = element.write();
        let read = Element::parse(&written).unwrap();
        for found in read.descendants() {
            let begins = format!("<{}", found.name);
            prop_assert!(written[found.place()..].starts_with(&begins));
            prop_assert_eq!(read.path_to(found.place()).last().copied(), Some(found.local_name()));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in prop_oneof!["\\PC*", "[<>/&;a'= !?\\[\\]-]{0,40}"]) {
        if let Ok(element) = Element::parse(&text) {
            let written = element.write();
            prop_assert_eq!(Element::parse(&written).unwrap().write(), written);
        }
    }
}
