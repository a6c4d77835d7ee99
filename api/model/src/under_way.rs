//! The step that the service has reached for an attachment, in words for the command line and the page.

use serde_json::Value;

/// Returns in words the step of an attach or detach, by the name that the API has for it.
pub fn step(name: &str) -> &str {
    match name {
        "wait" => "waiting for another attach to the same server",
        "choose" => "choosing devices",
        "reserve" => "reserving devices",
        "unbind-group" => "unbinding the IOMMU group from its host drivers",
        "render" => "making the document for libvirt",
        "plug" => "libvirt is plugging the device",
        "settle" => "recording the result",
        "undo" => "taking back what was plugged",
        "quiesce" => "preparing the guest",
        "release" => "taking the device out of the definition",
        "verify" => "asking the guest for the address",
        other => other,
    }
}

/// Returns in words the request to the guest to release a device whose answer is awaited, by the `progress` of the API;
/// `None` when there is none.
pub fn unplug_request(progress: &Value) -> Option<String> {
    let (attempt, attempts) = (progress["attempt"].as_u64()?, progress["attempts"].as_u64()?);
    let seconds = progress["seconds"].as_f64()?;
    // A detach with a time limit of its own repeats the requests until that time is over.
    let of = if attempt > attempts { String::new() } else { format!(" of {attempts}") };
    Some(format!("asked the guest to release the device, attempt {attempt}{of}, up to {seconds} s each"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_progress_of_a_detach_is_told_with_its_limit() {
        let progress = |attempt: u32| json!({ "attempt": attempt, "attempts": 8, "seconds": 20.0 });
        let said = "asked the guest to release the device, attempt";
        assert_eq!(unplug_request(&progress(2)).unwrap(), format!("{said} 2 of 8, up to 20 s each"));
        assert_eq!(unplug_request(&progress(9)).unwrap(), format!("{said} 9, up to 20 s each"));
        assert_eq!(unplug_request(&Value::Null), None);
    }
}
