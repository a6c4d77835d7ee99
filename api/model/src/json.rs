//! Reads JSON whose objects have no key twice, and says in the words of JSON what is wrong with one.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
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

/// The words of serde for what it expected, and those of JSON.
const EXPECTED: [(&str, &str); 24] = [
    ("a sequence", "a list"),
    ("a map", "an object"),
    ("unit", "null"),
    ("variant identifier", "a string"),
    ("string or map", "a string"),
    ("a nonzero u8", "an integer from 1 to 255"),
    ("a nonzero u16", "an integer from 1 to 65535"),
    ("a nonzero u32", "an integer from 1 to 4294967295"),
    ("a nonzero u64", "an integer from 1 up"),
    ("a nonzero usize", "an integer from 1 up"),
    ("u8", "an integer from 0 to 255"),
    ("u16", "an integer from 0 to 65535"),
    ("u32", "an integer from 0 to 4294967295"),
    ("u64", "an integer from 0 up"),
    ("usize", "an integer from 0 up"),
    ("i8", "an integer from -128 to 127"),
    ("i16", "an integer from -32768 to 32767"),
    ("i32", "an integer from -2147483648 to 2147483647"),
    ("i64", "an integer"),
    ("isize", "an integer"),
    ("f32", "a number"),
    ("f64", "a number"),
    ("string", "a string"),
    ("a boolean", "true or false"),
];

/// The words of serde for what it found, and those of JSON.
const FOUND: [(&str, &str); 10] = [
    ("map", "an object"),
    ("sequence", "a list"),
    ("unit", "null"),
    ("unit value", "null"),
    ("Option value", "null"),
    ("string", "a string"),
    ("integer", "an integer"),
    ("floating point", "a number with a fraction"),
    ("boolean", "a boolean"),
    ("datetime", "a date"),
];

/// How many characters of a value a message shows.
const SHOWN: usize = 80;

fn expected(words: &str) -> String {
    if let Some((_, plain)) = EXPECTED.iter().find(|(word, _)| *word == words) {
        return (*plain).to_owned();
    }
    // The name of a type of Rust says nothing to somebody who writes JSON.
    if let Some(count) = words.strip_prefix("a tuple of size ") {
        return format!("a list of {count} items");
    }
    match words.split_once(' ') {
        Some(("struct", _)) => "an object".to_owned(),
        Some(("enum", _)) => "a string".to_owned(),
        Some(("tuple" | "newtype", rest)) if rest.starts_with("struct ") => "another value".to_owned(),
        _ => words.to_owned(),
    }
}

/// `integer `3`` is 3, and `string "x"` is "x".
fn found(words: &str) -> String {
    if let Some((_, plain)) = FOUND.iter().find(|(word, _)| *word == words) {
        return (*plain).to_owned();
    }
    let quoted = ["integer `", "floating point `", "boolean `", "character `"].iter();
    let value = quoted.filter_map(|kind| words.strip_prefix(kind)?.strip_suffix('`')).next();
    let value = value.or_else(|| words.strip_prefix("string ")).unwrap_or(words);
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

/// Returns the names that a message of serde has between backquotes: `expected one of `a`, `b``.
fn names(words: &str) -> String {
    words.split('`').skip(1).step_by(2).collect::<Vec<_>>().join(", ")
}

/// Returns a message of serde in plain words, which say what was found and what would be right, without the names of
/// types of Rust.
pub fn plain(message: &str) -> String {
    if let Some(rest) = ["invalid type: ", "invalid value: "].iter().find_map(|it| message.strip_prefix(it))
        && let Some((value, right)) = rest.rsplit_once(", expected ")
    {
        return format!("expected {}, found {}", expected(right), found(value));
    }
    if let Some((count, right)) =
        message.strip_prefix("invalid length ").and_then(|rest| rest.split_once(", expected "))
    {
        return format!("expected {}, found {count} items", expected(right));
    }
    for (serde, plain) in [("unknown field `", "unknown key"), ("unknown variant `", "unknown value")] {
        if let Some((name, known)) = message.strip_prefix(serde).and_then(|rest| rest.split_once('`')) {
            let known = names(known);
            let known = if known.is_empty() { "there are no keys".into() } else { format!("known: {known}") };
            return format!("{plain} `{name}`; {known}");
        }
    }
    for (serde, plain) in [("missing field `", "is missing"), ("duplicate field `", "is given twice")] {
        if let Some(name) = message.strip_prefix(serde).and_then(|rest| rest.strip_suffix('`')) {
            return format!("the key `{name}` {plain}");
        }
    }
    message.to_owned()
}

/// Returns an error of serde_json in plain words. Where the text is not valid JSON, they name the place in it.
pub fn reason(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match error.classify() {
        Category::Data => plain(message.strip_suffix(&place).unwrap_or(&message)),
        Category::Syntax => message,
        Category::Eof | Category::Io => {
            let (line, column) = (error.line(), error.column());
            format!("the text ends too early, at line {line} column {column}")
        }
    }
}

/// Reads a value of a type from JSON.
///
/// # Errors
/// A message in plain words with the keys that lead to the mistake.
pub fn read<'de, T: Deserialize<'de>, D: Deserializer<'de, Error = serde_json::Error>>(
    from: D,
) -> Result<T, String> {
    serde_path_to_error::deserialize(from).map_err(|error| {
        let (path, reason) = (error.path().to_string(), reason(error.inner()));
        let outer = match reason.strip_prefix("unknown key `").and_then(|rest| rest.split_once('`')) {
            // The message names the last key itself.
            Some((key, _)) => path.strip_suffix(key).unwrap_or(&path).trim_end_matches('.'),
            None => path.as_str(),
        };
        if matches!(outer, "" | "." | "?") { reason } else { format!("{outer}: {reason}") }
    })
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
            _level: Option<Level>,
            _pair: Option<(u8, u8)>,
            _no: Option<Nothing>,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Level {
            Low,
            High,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Nothing {}
        for (text, says) in [
            (r#"{"_inner": 3}"#, "_inner: expected an object, found 3"),
            (
                r#"{"_inner": {"_number": -1}}"#,
                "_inner._number: expected an integer from 0 to 4294967295, found -1",
            ),
            (
                r#"{"_inner": {"_number": "5, expected u32"}}"#,
                r#"_inner._number: expected an integer from 0 to 4294967295, found "5, expected u32""#,
            ),
            (r#"{"_inner": {}}"#, "_inner: the key `_number` is missing"),
            (
                r#"{"_inner": {"_number": null}}"#,
                "_inner._number: expected an integer from 0 to 4294967295, found null",
            ),
            (r#"{"_list": {}}"#, "_list: expected a list, found an object"),
            (r#"{"_list": [], "_list": []}"#, "duplicate key `_list`"),
            (r#"{"_text": []}"#, "_text: expected a string, found a list"),
            (r#"{"_text": 1.5}"#, "_text: expected a string, found 1.5"),
            (r#"{"_nonzero": 0}"#, "_nonzero: expected an integer from 1 to 4294967295, found 0"),
            (r#"{"_level": "hi"}"#, "_level: unknown value `hi`; known: low, high"),
            (r#"{"_level": 1}"#, "_level: expected a string, found 1"),
            (r#"{"_pair": [1]}"#, "_pair: expected a list of 2 items, found 1 items"),
            (r#"{"_no": {"a": 1}}"#, "_no: unknown key `a`; there are no keys"),
            (r#"{"x": 0}"#, "unknown key `x`; known: _inner, _list, _text, _nonzero, _level, _pair, _no"),
            (r#"{"x": }"#, "expected value at line 1 column 7"),
            (r#"{"x": "#, "the text ends too early, at line 1 column 6"),
        ] {
            let said = match parse(text.as_bytes()) {
                Ok(value) => read::<Outer, _>(value).unwrap_err(),
                Err(error) => reason(&error),
            };
            assert_eq!(said, says, "{text}");
        }
        let long = format!(r#"{{"_list": "{}"}}"#, "é".repeat(100));
        let said = read::<Outer, _>(parse(long.as_bytes()).unwrap()).unwrap_err();
        assert_eq!(said, format!("_list: expected a list, found \"{}…", "é".repeat(79)));
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
            let read = parse(text.as_bytes());
            let _ = read.as_ref().map_err(reason);
            prop_assert!(read.is_err() || serde_json::from_str::<Value>(&text).is_ok());
            let _ = plain(&text);
        }
    }
}
