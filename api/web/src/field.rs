//! A field of a form that becomes one key of a request.

use std::ops::RangeInclusive;

use hotslot_model::json;
use maud::{Markup, html};
use serde_json::Value;

use crate::problem::Problem;
use crate::remedy::by_pages;

/// A value that can be chosen, and what it means. The empty one leaves the key out of the request.
pub(crate) type Choice = (&'static str, &'static str);

/// Returns the NUMA policies, by their names and what they mean. `unset` is what it means when none is chosen.
pub(crate) const fn policies(unset: &'static str) -> [Choice; 5] {
    [
        ("", unset),
        ("required", "required: only devices of the guest's NUMA nodes"),
        ("socket", "socket: only devices of the same socket"),
        ("preferred", "preferred: any device, near ones first"),
        ("legacy", "legacy: near ones, or those whose node is not known"),
    ]
}

/// What can be written into a field.
pub(crate) enum Input {
    /// A text, with an example.
    Text(&'static str),
    /// A number in this range, with a hint. Without a range, the routes check it.
    Number(Option<RangeInclusive<u32>>, &'static str),
    /// One of a list of values.
    Choice(&'static [Choice]),
}

/// A field: its key in the API, its label, and what can be written.
pub(crate) struct Field {
    pub(crate) key: &'static str,
    pub(crate) label: &'static str,
    pub(crate) input: Input,
}

impl Field {
    /// Returns what was written as a value of the API.
    ///
    /// # Errors
    /// 400, with the key, for what the field cannot have. The routes check everything else.
    pub(crate) fn value(&self, written: &str) -> Result<Value, Problem> {
        let wrong = |expected: &str| {
            let key = by_pages(self.key);
            Problem::new(400, format!("{key}: `{written}` is not {expected}"))
        };
        match &self.input {
            Input::Text(_) => Ok(written.into()),
            Input::Number(range, _) => match (written.parse::<u32>(), range) {
                (Ok(number), Some(range)) if range.contains(&number) => Ok(number.into()),
                (Ok(number), None) => Ok(number.into()),
                (_, Some(range)) => {
                    Err(wrong(&format!("a number from {} to {}", range.start(), range.end())))
                }
                (Err(_), None) => Err(wrong("a number from 0 up")),
            },
            Input::Choice(choices) if choices.iter().any(|(value, _)| *value == written) => {
                Ok(written.parse::<bool>().map_or_else(|_| written.into(), Value::from))
            }
            Input::Choice(choices) => {
                let values: Vec<_> =
                    choices.iter().map(|(value, _)| *value).filter(|value| !value.is_empty()).collect();
                Err(wrong(&format!("one of {}", values.join(", "))))
            }
        }
    }

    /// Whether a message is about what was written into this field: it begins with the key.
    pub(crate) fn is_refused_by(&self, message: &str) -> bool {
        self.about(message).is_some()
    }

    /// Returns a message about this field with its label in place of the key of the API; `None` for another message.
    fn about(&self, message: &str) -> Option<String> {
        let message = message.strip_prefix("acc_specs: ").unwrap_or(message);
        let after = |key: &str| {
            message.strip_prefix(key).filter(|rest| rest.starts_with(':') || rest.starts_with(" is "))
        };
        let words = by_pages(self.key);
        if words != self.key && after(&words).is_some() {
            return Some(message.to_owned());
        }
        after(self.key).map(|rest| format!("{}{rest}", self.label))
    }

    /// Returns the field as it is on the form, with the reason why what was written is refused.
    pub(crate) fn show(&self, written: &str, refusal: Option<&str>) -> Markup {
        let refusal = refusal.and_then(|message| self.about(message));
        let invalid = refusal.as_ref().map(|_| "true");
        let described = refusal.as_ref().map(|_| format!("{}-refused", self.key));
        let described = described.as_deref();
        html! {
            label {
                span { (self.label) }
                @match &self.input {
                    Input::Text(example) => input name=(self.key) value=(written) placeholder=(example) autocomplete="off" spellcheck="false" aria-invalid=[invalid] aria-describedby=[described];,
                    Input::Number(_, hint) => input name=(self.key) value=(written) placeholder=(hint) inputmode="numeric" autocomplete="off" aria-invalid=[invalid] aria-describedby=[described];,
                    Input::Choice(choices) => select name=(self.key) aria-invalid=[invalid] aria-describedby=[described] {
                        @for (value, meaning) in *choices { option value=(value) selected[*value == written] { (meaning) } }
                    },
                }
            }
            @if let (Some(message), Some(id)) = (refusal, described) { p.wrong id=(id) { (message) } }
        }
    }

    /// Returns what was written, in words.
    pub(crate) fn said(&self, written: &str) -> Markup {
        let meaning = match &self.input {
            Input::Choice(choices) => choices.iter().find(|(value, _)| *value == written),
            Input::Text(_) | Input::Number(..) => None,
        };
        html! { dt { (self.label) } dd { (meaning.map_or(written, |(_, meaning)| meaning)) } }
    }
}

/// Returns why a request is refused, and what to do next: correct the field that the message is about, or else `next`.
pub(crate) fn refusal<'a>(
    problem: &Problem,
    fields: impl IntoIterator<Item = &'a Field>,
    next: &str,
) -> Markup {
    let about = fields.into_iter().find_map(|field| Some((field, field.about(&problem.message)?)));
    match about {
        Some((field, message)) => Problem { message, ..problem.clone() }
            .alert(&format!("Correct the field \u{201c}{}\u{201d}.", field.label)),
        None => problem.alert(next),
    }
}

/// Parses JSON that a person has written. `what` begins the message.
///
/// # Errors
/// 400 with what is wrong and where.
pub(crate) fn written_json(what: &str, written: &str) -> Result<Value, Problem> {
    json::parse(written.as_bytes()).map_err(|error| {
        let reason = json::reason(&error)
            .replace("recursion limit exceeded", "more than 127 lists or objects are in each other");
        Problem::new(400, format!("{what}: {reason}"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FREE: Field = Field { key: "rate", label: "Rate", input: Input::Number(None, "") };
    const NUMBER: Field =
        Field { key: "max_tx_rate", label: "Maximum rate", input: Input::Number(Some(1..=9), "") };
    const CHOICE: Field =
        Field { key: "trusted", label: "Trust", input: Input::Choice(&[("", "-"), ("true", "trusted")]) };
    const TEXT: Field = Field { key: "vendor_id", label: "Vendor", input: Input::Text("") };

    #[test]
    fn what_is_written_becomes_a_value_of_the_api_or_names_its_field() {
        for (field, written, value) in [
            (NUMBER, "9", json!(9)),
            (FREE, "10", json!(10)),
            (CHOICE, "true", json!(true)),
            (TEXT, "8086", json!("8086")),
        ] {
            assert_eq!(field.value(written).unwrap(), value, "{}", field.key);
        }
        for (field, written) in [
            (NUMBER, "x"),
            (NUMBER, "0"),
            (NUMBER, "10"),
            (FREE, "x"),
            (NUMBER, "-1"),
            (NUMBER, "1.5"),
            (CHOICE, "maybe"),
        ] {
            let problem = field.value(written).unwrap_err();
            assert!(field.is_refused_by(&problem.message), "{}", problem.message);
        }
    }

    #[test]
    fn a_message_is_about_the_field_whose_key_it_begins_with() {
        for message in ["acc_specs: vendor_id is `1`; write four hexadecimal digits", "vendor_id: no"] {
            assert!(TEXT.is_refused_by(message), "{message}");
        }
        for message in ["acc_specs: product_id is `1`", "vendor_ids: no", "the vendor_id: no"] {
            assert!(!TEXT.is_refused_by(message), "{message}");
        }
    }
}
