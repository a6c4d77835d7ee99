//! Reads JSON whose objects have no key twice, and says in the words of JSON what is wrong with one.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses a JSON text. An object that has a key twice is refused: which of the values was meant is not known, and readers
/// differ in which one they take.
///
/// # Errors
/// The error of serde_json, with its place in the text.
pub fn parse(text: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Unique>(text).map(|Unique(value)| value)
}

struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Builder).map(Self)
    }
}

/// Builds a value from what the parser finds, as serde_json does for [`Value`].
struct Builder;

impl<'de> Visitor<'de> for Builder {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            all.push(item);
        }
        Ok(all.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some((key, Unique(value))) = members.next_entry::<String, _>()? {
            if all.contains_key(&key) {
                let shown: String = key.chars().take(80).collect();
                return Err(de::Error::custom(format_args!("duplicate key `{shown}`")));
            }
            all.insert(key, value);
        }
        Ok(all.into())
    }
}

/// The words of serde for types, and those of JSON.
const WORDS: [(&str, &str); 21] = [
    ("invalid type: map", "invalid type: an object"),
    ("invalid type: sequence", "invalid type: a list"),
    ("invalid type: unit", "invalid type: null"),
    ("expected a sequence", "expected a list"),
    ("expected a map", "expected an object"),
    ("expected a nonzero u8", "expected an integer from 1 to 255"),
    ("expected a nonzero u16", "expected an integer from 1 to 65535"),
    ("expected a nonzero u32", "expected an integer from 1 to 4294967295"),
    ("expected a nonzero u64", "expected an integer from 1 up"),
    ("expected a nonzero usize", "expected an integer from 1 up"),
    ("expected u8", "expected an integer from 0 to 255"),
    ("expected u16", "expected an integer from 0 to 65535"),
    ("expected u32", "expected an integer from 0 to 4294967295"),
    ("expected u64", "expected an integer from 0 up"),
    ("expected usize", "expected an integer from 0 up"),
    ("expected i8", "expected an integer"),
    ("expected i16", "expected an integer"),
    ("expected i32", "expected an integer"),
    ("expected i64", "expected an integer"),
    ("expected f64", "expected a number"),
    ("expected unit", "expected null"),
];

/// Returns a message of serde without the names of types of Rust.
pub fn plain(message: &str) -> String {
    let mut text = message.to_owned();
    for (words, plain) in WORDS {
        let ends = |rest: &str| !rest.starts_with(|letter: char| letter.is_ascii_alphanumeric());
        if let Some((before, after)) = text.split_once(words)
            && ends(after)
        {
            text = format!("{before}{plain}{after}");
        }
    }
    for kind in ["struct ", "tuple struct ", "newtype struct ", "enum "] {
        let expected = format!("expected {kind}");
        if let Some((before, after)) = text.split_once(&expected) {
            let end = after.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(after.len());
            let noun = if kind == "struct " { "an object" } else { "another value" };
            text = format!("{before}expected {noun}{}", &after[end..]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_that_an_object_has_twice_is_refused_at_any_depth() {
        for (text, key) in [
            (r#"{"a": 1, "a": 1}"#, "a"),
            (r#"[{"b": {"c": 1, "d": 2, "c": 3}}]"#, "c"),
            (r#"{"a": 1, "\u0061": 2}"#, "a"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("duplicate key `{key}` at line 1 ")), "{error}");
        }
        assert_eq!(
            parse(br#"[{"a": 1}, {"a": {"a": 2}}]"#).unwrap(),
            json!([{ "a": 1 }, { "a": { "a": 2 } }])
        );
        assert!(parse(b"{\"a\": ").is_err() && parse(b"").is_err() && parse(b"{} {}").is_err());
    }

    #[test]
    fn messages_have_no_types_of_rust() {
        #[derive(Debug, serde::Deserialize)]
        struct Inner {
            _number: u32,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Outer {
            _inner: Option<Inner>,
            _list: Option<Vec<String>>,
            _text: Option<String>,
            _nonzero: Option<std::num::NonZeroU32>,
        }
        for (text, says) in [
            (r#"{"_inner": 3}"#, "invalid type: integer `3`, expected an object at"),
            (r#"{"_inner": {"_number": -1}}"#, "expected an integer from 0 to 4294967295 at"),
            (r#"{"_list": {}}"#, "invalid type: an object, expected a list at"),
            (r#"{"_text": []}"#, "invalid type: a list, expected a string at"),
            (r#"{"_nonzero": 0}"#, "expected an integer from 1 to 4294967295 at"),
            (r#"{"x": 0}"#, "unknown field `x`"),
        ] {
            let error = plain(&serde_json::from_str::<Outer>(text).unwrap_err().to_string());
            assert!(error.contains(says), "{error}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(|number| json!(number)),
            ".{0,5}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c]{0,2}", inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn other_texts_are_read_as_serde_json_reads_them(value in any_json()) {
            let text = value.to_string();
            let expected: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(parse(text.as_bytes()).unwrap(), expected);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[{}\\[\\]\":,a0-9.e\\\\-]{0,40}") {
            let read = parse(text.as_bytes()).is_ok();
            prop_assert!(!read || serde_json::from_str::<Value>(&text).is_ok());
            let _ = plain(&text);
        }
    }
}
