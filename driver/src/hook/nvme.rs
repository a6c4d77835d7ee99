//! The scrub of NVMe controllers: every namespace is formatted with a user data erase (NVM Express Base Specification,
//! "Format NVM command", Secure Erase Settings 1), by nvme-cli.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::command;

/// The program of nvme-cli.
pub(super) const PROGRAM: &str = "nvme";

/// The largest number of namespaces that a controller lists at once (Identify, CNS 02h and 10h).
const LISTED: usize = 1024;

/// The bits of Optional Admin Command Support (OACS) that say whether a controller can format and manage namespaces.
const CAN_FORMAT: u64 = 1 << 1;
const CAN_MANAGE: u64 = 1 << 3;

/// The bits of Controller Multi-path I/O and Namespace Sharing Capabilities (CMIC) that say whether the NVM subsystem may have
/// other controllers, or the controller is of a VF. Others may then use the same namespaces. Which there are is in the
/// Controller List (Identify, CNS 13h).
const MAY_HAVE_OTHERS: u64 = 1 << 1 | 1 << 2;

/// Formats all namespaces of a controller, also those that are not attached to it. `controllers` are those that the kernel
/// made of the function.
///
/// # Errors
/// Why not all of them were formatted, for people.
pub(super) fn format(controllers: &[String], limit: Duration, program: &str) -> Result<(), String> {
    let [controller] = controllers else {
        return Err(
            "the driver nvme has made no controller of it; the kernel's log on the host may say why".into()
        );
    };
    let (device, until) = (format!("/dev/{controller}"), Instant::now() + limit);
    let run = |arguments: &[&str]| {
        let words: Vec<_> = [program].iter().chain(arguments).map(|word| (*word).to_owned()).collect();
        let left = until.saturating_duration_since(Instant::now());
        command::run(Path::new(program), &words, left).map_err(|error| {
            if error.contains("cannot be started") {
                return format!(
                    "{error}; install nvme-cli on the host, or write a scrub hook for class `NVMe controller`"
                );
            }
            format!("`{}` failed: {error}", words.join(" "))
        })
    };
    let about = json(&run(&["id-ctrl", &device, "--output-format=json"])?)?;
    let number = |key: &str| about[key].as_u64().ok_or_else(|| unreadable(&about.to_string()));
    if number("cmic")? & MAY_HAVE_OTHERS != 0 {
        // Many disks could have a second port, and have one controller all the same.
        let listed = json(&run(&["list-ctrl", &device, "--output-format=json"])?)?;
        let own = number("cntlid")?;
        let all = listed["ctrl_list"].as_array().ok_or_else(|| unreadable(&listed.to_string()))?;
        if !matches!(all.as_slice(), [one] if one["ctrl_id"].as_u64() == Some(own)) {
            return Err(format!(
                "{device} is of an NVM subsystem with several controllers (`nvme list-ctrl {device}`), so another one may \
                 use its namespaces; write a scrub hook for class `NVMe controller` that erases what belongs to this one"
            ));
        }
    }
    let can = number("oacs")?;
    if can & CAN_FORMAT == 0 {
        return Err(format!(
            "{device} cannot format its namespaces (OACS); write a scrub hook for class `NVMe controller` that erases it \
             in another way"
        ));
    }
    let mut list = vec!["list-ns", &*device, "--output-format=json"];
    if can & CAN_MANAGE != 0 {
        list.push("--all");
    }
    let listed = json(&run(&list)?)?;
    let namespaces = listed["nsid_list"].as_array().ok_or_else(|| unreadable(&listed.to_string()))?;
    if namespaces.len() >= LISTED {
        return Err(format!(
            "{device} has {LISTED} namespaces or more, of which not all are listed; write a scrub hook for class `NVMe \
             controller` that erases them"
        ));
    }
    for namespace in namespaces {
        let id = namespace["nsid"].as_u64().ok_or_else(|| unreadable(&listed.to_string()))?;
        let left = until.saturating_duration_since(Instant::now()).as_millis().min(u128::from(u32::MAX));
        let (id, left) = (format!("--namespace-id={id}"), format!("--timeout={left}"));
        run(&["format", &device, &id, "--ses=1", "--force", &left])?;
    }
    Ok(())
}

/// Reads the JSON in an output, which may have warnings around it.
fn json(output: &str) -> Result<Value, String> {
    let part = output.find('{').zip(output.rfind('}')).and_then(|(from, to)| output.get(from..=to));
    part.and_then(|part| serde_json::from_str(part).ok()).ok_or_else(|| unreadable(output))
}

fn unreadable(output: &str) -> String {
    let start: String = output.chars().take(200).collect();
    format!("the output of nvme is not understood: {start}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A program in the place of nvme that writes down what it was asked.
    fn program(dir: &Path, (cmic, oacs): (u64, u64), list: &str, format: &str) -> String {
        let (path, log) = (dir.join("nvme"), dir.join("log"));
        let script = format!(
            "#!/bin/sh\necho \"$1 $2 $3 $4 $5\" >>{}\ncase $1 in\nid-ctrl) echo warning >&2; echo '{{\"cmic\":{cmic},\"cntlid\":5,\"oacs\":{oacs}}}';;\n\
             list-ctrl) cat {};;\nlist-ns) echo '{list}';;\nformat) {format};;\nesac\n",
            log.display(),
            dir.join("controllers").display()
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let _ = fs::remove_file(log);
        path.display().to_string()
    }

    #[test]
    fn all_namespaces_are_formatted_or_the_reason_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let of = |oacs, list: &str, each: &str| {
            let program = program(dir.path(), oacs, list, each);
            let done = format(&["nvme3".into()], LIMIT, &program);
            (done, fs::read_to_string(dir.path().join("log")).unwrap())
        };
        let two = r#"{"nsid_list":[{"nsid":1},{"nsid":7}]}"#;
        let (done, log) = of((1, 0x0a), two, "true");
        assert_eq!(done, Ok(()));
        let formats: Vec<_> = log.lines().filter(|line| line.starts_with("format")).collect();
        assert_eq!(
            formats,
            [
                "format /dev/nvme3 --namespace-id=1 --ses=1 --force",
                "format /dev/nvme3 --namespace-id=7 --ses=1 --force"
            ]
        );
        assert!(log.contains("list-ns /dev/nvme3 --output-format=json --all"), "{log}");
        let (done, log) = of((0, 0x02), r#"{"nsid_list":[]}"#, "true");
        assert!(done.is_ok() && !log.contains("--all") && !log.contains("format /dev"), "{log}");
        let (done, log) = of((0, 0x02), two, "echo NVMe status: namespace is locked; exit 1");
        let error = done.unwrap_err();
        assert!(error.contains("--namespace-id=1") && error.contains("namespace is locked"), "{error}");
        assert!(!log.contains("--namespace-id=7"), "{log}");
        for (oacs, list, says) in
            [((0, 0), two, "cannot format"), ((0, 2), "no json", "not understood"), ((0, 2), "{}", "not")]
        {
            let (done, log) = of(oacs, list, "true");
            let error = done.unwrap_err();
            assert!(error.contains(says) && !log.contains("format /dev"), "{error} {log}");
        }
        // A controller that may have others is erased when it is the only one.
        for (controllers, says) in [
            (r#"{"num_ctrl":1,"ctrl_list":[{"ctrl_id":5}]}"#, ""),
            (r#"{"num_ctrl":2,"ctrl_list":[{"ctrl_id":5},{"ctrl_id":6}]}"#, "several controllers"),
            (r#"{"num_ctrl":1,"ctrl_list":[{"ctrl_id":6}]}"#, "several controllers"),
            (r#"{"num_ctrl":0,"ctrl_list":[]}"#, "several controllers"),
            ("{}", "not understood"),
        ] {
            fs::write(dir.path().join("controllers"), controllers).unwrap();
            for cmic in [2, 4] {
                let (done, log) = of((cmic, 2), two, "true");
                let error = done.err().unwrap_or_default();
                assert!(
                    error.contains(says) && error.is_empty() == says.is_empty(),
                    "{controllers}: {error}"
                );
                assert_eq!(log.contains("format /dev"), says.is_empty(), "{controllers}: {log}");
            }
        }
        let program = program(dir.path(), (0, 2), two, "true");
        let script = fs::read_to_string(&program).unwrap().replace("\"cmic\":0,", "");
        fs::write(&program, script).unwrap();
        let error = format(&["nvme3".into()], LIMIT, &program).unwrap_err();
        assert!(error.contains("not understood"), "what is not told is not assumed: {error}");
        let many = (1..=1024).map(|id| format!(r#"{{"nsid":{id}}}"#)).collect::<Vec<_>>().join(",");
        let (done, log) = of((0, 2), &format!(r#"{{"nsid_list":[{many}]}}"#), "true");
        assert!(done.unwrap_err().contains("not all are listed") && !log.contains("format /dev"), "{log}");
        let error = format(&["nvme3".into()], LIMIT, "/no/such/nvme").unwrap_err();
        assert!(error.contains("install nvme-cli on the host"), "{error}");
        assert!(format(&[], LIMIT, "nvme").unwrap_err().contains("no controller"));
    }
}
