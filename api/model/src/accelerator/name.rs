//! The name of an accelerator.

use hotslot_driver::text;

/// The maximum length of a name in characters, as in Cyborg's database.
pub const LONGEST_NAME: usize = 255;

/// Checks that a text can be the name of an accelerator: it has 1 to [`LONGEST_NAME`] characters, all of them visible, and
/// not only spaces.
///
/// # Errors
/// A message for people.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.trim().is_empty() || name.chars().count() > LONGEST_NAME {
        return Err(format!("the name must have 1 to {LONGEST_NAME} characters"));
    }
    text::visible(name).map_err(|reason| format!("name: {reason}"))
}
