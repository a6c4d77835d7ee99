//! Data files of requests and of what is expected of each. `HOTSLOT_RECORD=1` writes what is found instead of comparing;
//! read the difference before you commit it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{I440FX, Q35};

fn data(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(file)
}

/// Returns the rows of a data file.
pub fn rows(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(data(file)).expect("a data file");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Whether what is found is to be written.
pub fn is_recording() -> bool {
    std::env::var_os("HOTSLOT_RECORD").is_some()
}

/// Writes the rows of a data file, when they are to be recorded.
pub fn record(file: &str, rows: &[Value]) {
    if is_recording() {
        let lines: Vec<_> = rows.iter().map(ToString::to_string).collect();
        std::fs::write(data(file), format!("[\n{}\n]\n", lines.join(",\n"))).expect("write the data file");
    }
}

/// The values that requests name as `<name>`: two guests, and what earlier answers had.
pub struct Names(BTreeMap<String, String>);

impl Default for Names {
    fn default() -> Self {
        Self([("q35", Q35), ("i440fx", I440FX)].map(|(name, id)| (name.to_owned(), id.to_owned())).into())
    }
}

impl Names {
    /// Replaces the names of a text by their values.
    pub fn fill(&self, text: &str) -> String {
        let fill =
            |text: String, (name, value): (&String, &String)| text.replace(&format!("<{name}>"), value);
        self.0.iter().fold(text.to_owned(), fill)
    }

    /// Keeps the values of an answer that a row names under `keep`, each with a JSON pointer.
    pub fn keep(&mut self, row: &Value, answer: &Value) {
        for (name, pointer) in row["keep"].as_object().into_iter().flatten() {
            let value = pointer.as_str().and_then(|pointer| answer.pointer(pointer));
            let value = value.unwrap_or_else(|| panic!("{name}: no {pointer} in {answer}"));
            self.0.insert(name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
}
