use super::*;

fn error(text: &str) -> String {
    Config::parse(text).unwrap_err().to_string()
}

#[test]
fn no_error_repeats_a_text_that_may_be_a_password() {
    for text in [
        "[database]\nurl = postgres://hotslot:s3cret@db/hotslot",
        "database = 'postgres://hotslot:s3cret@db/hotslot'",
        "[database]\nurl = ['postgres://hotslot:s3cret@db/hotslot']",
        "[database]\nurl = 'mysql://hotslot:s3cret@db/hotslot'",
        "[database]\nurl = 'postgres://hotslot:s3cret@db/hotslot",
        "[api]\nlisten = 'postgres://hotslot:s3cret@db'",
        "[api]\nlisten = 'http://hotslot:s3cret@127.0.0.1:1'",
        "[libvirt]\ncall_timeout = \"s3cret\"",
        "[[webhook]]\nname = 'w'\nurl = 'http://x/'\nsecret = s3cret",
        "[[webhook]]\nname = 'w'\nurl = 'http://u:s3cret@x/'\nsecret = 's3cret'",
        "webhook = 's3cret \\\", expected s3cret'",
    ] {
        let message = error(text);
        assert!(!message.contains("s3cret"), "{text}: {message}");
        let (_, all) = Config::examine_text("file", text);
        let all: Vec<_> = all.iter().map(ToString::to_string).collect();
        assert!(!all.is_empty() && !all.join("\n").contains("s3cret"), "{text}: {all:?}");
    }
}

#[test]
fn no_error_repeats_a_value_that_was_written_without_quotes() {
    let webhook = "[[webhook]]\nname = 'w'\nurl = 'http://x/'\nsecret =";
    for (key, value) in [
        (webhook, "98765"),
        (webhook, "98765.25"),
        (webhook, "1987-06-05"),
        (webhook, "true"),
        ("[database]\nurl =", "98765"),
        ("[detach]\nattempts =", "-98765"),
    ] {
        let message = error(&format!("{key} {value}"));
        assert!(message.contains("expected "), "{message}");
        assert!(!message.contains(value), "{message}");
    }
}

#[test]
fn an_empty_file_is_the_default() {
    let config = Config::parse("").unwrap();
    assert_eq!(config.api.url(), "unix:/run/hotslot/api.sock");
    assert_eq!(config.hypervisors()[0].uri, "qemu:///system");
    assert!(config.pci.device_spec.is_empty());
    assert_eq!((config.detach.attempts, config.detach.timeout.0.as_secs()), (8, 20));
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    let report = error("[api]\nlisen = '127.0.0.1:1'");
    assert!(report.contains("line 2"), "{report}");
    assert!(report.contains("did you mean `listen`?"), "{report}");
    assert!(error("[hypervisors]").contains("did you mean `hypervisor`?"));
    assert!(error("[pci]\ndevice_specs = []").contains("did you mean `device_spec`?"));
}

#[test]
fn old_names_of_nova_for_the_lists_are_accepted() {
    for key in ["device_spec", "passthrough_whitelist", "pci_passthrough_whitelist"] {
        assert_eq!(
            Config::parse(&format!("[pci]\n{key} = ['{{}}']")).unwrap().pci.device_spec,
            ["{}".into()]
        );
    }
    for key in ["alias", "pci_alias"] {
        assert_eq!(Config::parse(&format!("[pci]\n{key} = ['{{}}']")).unwrap().pci.alias, ["{}".into()]);
    }
}

#[test]
fn extra_info_is_a_map_of_strings() {
    let entry = "[[pci.extra_info]]\nmatch = '{}'\nvalues = ";
    let config = Config::parse(&format!("{entry}{{ switch = 'tor-3' }}")).unwrap();
    assert_eq!(config.pci.extra_info[0].values["switch"], "tor-3");
    assert!(error(&format!("{entry}{{ unit = 3 }}")).contains("expected a string"));
    assert!(error("[[pci.extra_info]]\nvalues = {}").contains("match"));
}

#[test]
fn a_date_is_called_a_date() {
    for date in ["1979-05-27", "1979-05-27T07:32:00Z", "07:32:00"] {
        let report = error(&format!("[log]\nlevels = {date}"));
        assert!(report.contains("[log] levels: expected a string, found a date or time"), "{report}");
    }
    assert!(error("[log]\nlevels = { a = 1 }").contains("found a table"));
    let entry = Config::parse("[[pci.device_spec]]\nvendor_id = '8086'\nmade = 1979-05-27").unwrap();
    assert_eq!(entry.pci.device_spec[0].0, r#"{"made":"1979-05-27","vendor_id":"8086"}"#);
}

#[test]
fn a_table_in_place_of_a_list_of_tables_is_told() {
    let report = error("[pci.device_spec]\nvendor_id = '8086'");
    assert!(report.contains("write [[pci.device_spec]] for each entry"), "{report}");
    let report = error("[hypervisor]\nname = 'a'\nuri = 'qemu:///system'");
    assert!(
        report.contains("expected a list, found a table; write [[hypervisor]] for each entry"),
        "{report}"
    );
}

#[test]
fn an_address_of_the_network_needs_tls() {
    for good in ["127.0.0.1:9774", "[::1]:9774", "unix:/run/hotslot/api.sock"] {
        Config::parse(&format!("[api]\ninsecure_tcp = true\nlisten = '{good}'")).unwrap();
    }
    let tls = |listen: &str, more: &str| {
        format!(
            "[identity]\ntokens = '/t'\n[api]\nlisten = '{listen}'\n[api.tls]\ncertificate = '/a.pem'\nkey = '/b.pem'\n{more}"
        )
    };
    for identified in ["", "[identity]\ntokens = '/t'\n"] {
        let message = error(&format!("{identified}[api]\nlisten = '0.0.0.0:9774'"));
        assert!(message.contains("other machines") && message.contains("[api.tls]"), "{message}");
    }
    let insecure = tls("[::]:9774", "").replace("[api]\n", "[api]\ninsecure_tcp = true\n");
    assert!(error(&insecure).contains("insecure_tcp: the port can be reached from other machines"));
    let api = Config::parse(&tls("0.0.0.0:9774", "client_ca = '/c.pem'")).unwrap().api;
    assert_eq!(api.url(), "https://0.0.0.0:9774");
    assert!(error(&tls("unix:/a.sock", "")).contains("does not use TLS"));
    assert!(error(&tls("127.0.0.1:1", "client_certificates = 'optional'")).contains("client_ca"));
    assert!(error(&tls("127.0.0.1:1", "client_ca = 'c.pem'")).contains("`c.pem` is not an absolute path"));
    assert!(error("[api.tls]\ncertificate = '/a.pem'").contains("the key `key` is missing"));
    assert!(error("[api]\nlisten = 'unix:api.sock'").contains("absolute"));
    assert!(error("[api]\nlisten = 'localhost'").contains("127.0.0.1:9774"));
}

#[test]
fn the_socket_and_the_names_of_the_service_are_checked() {
    assert!(error("[api]\nsocket_mode = '0888'").contains("0660"));
    assert!(error("[api]\nsocket_mode = '7777'").contains("0660"));
    assert!(error("[api]\nhosts = ['http://a.example']").contains("without a port"));
    assert!(error("[api]\nhosts = ['a.example:80']").contains("without a port"));
    assert!(error("[api]\nconnections = 0").contains("connections"));
    let api = Config::parse(
        "[api]\nhosts = ['Hotslot.example', '[2001:db8::1]']\nlisten = '127.0.0.5:1'\ninsecure_tcp = true",
    )
    .unwrap()
    .api;
    for known in
        ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]", "127.0.0.5", "hotslot.EXAMPLE.", "[2001:db8::1]"]
    {
        assert!(api.is_known_host(known), "{known}");
    }
    for unknown in ["evil.example", "127.1", "localhost.evil.example", "192.0.2.1", "[2001:db8::2]", "", "."]
    {
        assert!(!api.is_known_host(unknown), "{unknown}");
    }
    assert_eq!(api.socket_mode, SocketMode(0o660));
}

#[test]
fn errors_of_values_out_of_range_say_what_would_be_right() {
    for bad in ["90", "d", "0d", "500ms", "-1d", "9mo", "99999999999999999d", "1é", ""] {
        assert!(error(&format!("[events]\nkeep = '{bad}'")).contains("write 90d"), "{bad}");
    }
    assert_eq!(Config::parse("[events]\nkeep = '36h'").unwrap().events.keep.0.as_secs(), 129_600);
    assert!(error("[events]\nmost = 0").contains("at least one"));
    assert!(error("[detach]\nattempts = 0").contains("at least once"));
    assert!(error("[detach]\ntimeout = -1").contains("seconds"));
    assert!(error("[detach]\ntimeout = 'long'").contains("seconds"));
    assert!(error("[detach]\nhot_unplug = 'no'").contains("yes, quiesce, refuse"));
    let class = |more: &str| error(&format!("[[detach.class]]\n{more}"));
    assert!(class("class = 'gpu'").contains("display controller"));
    assert!(class("class = 'bridge'\nhot_unplug = 'quiesce'").contains("needs a command"));
    assert!(class("class = 'bridge'\nquiesce = ['ip']").contains("absolute path"));
    assert!(error("[database]\nurl = 'mysql://x'").contains("sqlite:///"));
    assert!(error("[[hypervisor]]\nname='a'\nuri='qemu'").contains("qemu:///system"));
    let unguarded = error("[pci]\nunguarded = ['nope/3b:00.0']\n[[hypervisor]]\nname='a'\nuri='sim:///x'");
    assert!(unguarded.ends_with("no host is called `nope`; write one of a"), "{unguarded}");
    let twice = error("[pci]\npassthrough_whitelist = []\ndevice_spec = []");
    assert!(twice.contains("line 3: `device_spec` is another name of `passthrough_whitelist`"), "{twice}");
    assert!(
        error("[[hypervisor]]\nname='a'\nuri='test:///default'\n[[hypervisor]]\nname='a'\nuri='sim:///x'")
            .contains("two hosts")
    );
}

/// Returns the line of each problem in a text, or its key.
fn places(text: &str) -> Vec<String> {
    let (_, problems) = Config::examine_text("x.toml", text);
    let place = |problem| match problem {
        ConfigError::Syntax { line: Some(line), reason, .. } => {
            assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
            line.to_string()
        }
        ConfigError::Value { key, .. } => key,
        other @ (ConfigError::Syntax { .. } | ConfigError::Read { .. }) => panic!("{other}"),
    };
    problems.into_iter().map(place).collect()
}

#[test]
fn all_problems_are_reported_and_the_rest_is_read() {
    for (text, expected) in [
        ("", &[][..]),
        (
            "[detach]\nattempts = 0\n[reconcile]\ninterval = 0.5",
            &["[detach] attempts", "[reconcile] interval"],
        ),
        ("[[hypervisor]]\nname = ''\nuri = 'x'", &["[[hypervisor]][0] name", "[[hypervisor]][0] uri"]),
        (
            "[detach]\ntimeout = -1\nattempt = 0\nattempts = 0\n[apis]\n[pci]\nalias = 3",
            &["2", "3", "5", "7", "[detach] attempts"],
        ),
        ("hypervisor = 3\nx = 4", &["1", "2"]),
        ("[pci]\nalias = []\npci_alias = []", &["3"]),
        ("[pci]\npassthrough_whitelist = []\ndevice_spec = []\nx = 1", &["4", "3"]),
        ("[pci]\nunguarded = ['3b:00.0', 'nope/3b:00.0']", &["[pci] unguarded[1]"]),
        ("[pci]\nunguarded = ['localhost/3b:00.0']", &[]),
        ("[api\n[detach]\nattempts = 0\nx = = 1", &["1", "4"]),
    ] {
        assert_eq!(places(text), expected, "{text}");
    }
    let (config, _) = Config::examine_text("x", "[pci]\ndevice_spec = ['{}']\nalias = 3\n[api]\nx = 1");
    assert_eq!(config.pci.device_spec, ["{}".into()]);
}

proptest::proptest! {
    #[test]
    fn a_text_is_loaded_exactly_when_it_has_no_problems(
        lines in proptest::collection::vec(
            proptest::sample::select(vec![
                "[pci]", "[detach]", "[[hypervisor]]", "alias = []", "alias = 3", "attempts = 0",
                "attempts = 2", "name = 'a'", "uri = 'test:///default'", "[", "= 1", "x = { y = [ 1",
                "detach.timeout = 1", "\u{e9} = '\u{e9}'",
            ]),
            0..8,
        ),
    ) {
        let text = lines.join("\n");
        let (_, problems) = Config::examine_text("x", &text);
        proptest::prop_assert_eq!(Config::parse(&text).is_ok(), problems.is_empty(), "{:?}", problems);
    }
}

#[test]
fn a_webhook_has_a_name_an_url_and_a_secret_that_is_not_printed() {
    let hook = |lines: &str| {
        format!(
            "[[webhook]]\nname = 'a'\nurl = 'http://127.0.0.1/t0ken'\nsecret = '0123456789abcdef'\n{lines}"
        )
    };
    let config = Config::parse(&hook("kinds = ['attachment', 'device.gone']")).unwrap();
    let printed = format!("{config:?}");
    assert!(!printed.contains("t0ken") && !printed.contains("0123456789abcdef"), "{printed}");
    for (text, why) in [
        (hook("kinds = ['attachments']"), "attachment.state"),
        (hook("attempts = 0"), "at least once"),
        (hook("").replace("'a'", "'a/b'"), "1 to 64"),
        (hook("").replace("http:", "ftp:"), "not supported"),
        (hook("ca = 'ca.pem'"), "absolute path"),
        (hook("").replace("0123456789", "0"), "openssl rand"),
        (format!("{}{}", hook(""), hook("")), "another webhook has this name"),
    ] {
        let message = error(&text);
        assert!(message.contains(why) && !message.contains("t0ken"), "{message}");
    }
}

#[test]
fn a_password_is_not_printed() {
    let url = "postgres://hotslot:secret@db/hotslot".into();
    let database = Database { url, url_file: None };
    assert!(!format!("{database:?}").contains("secret"));
}

#[test]
fn the_example_file_is_the_default_configuration() {
    let example = include_str!("../../../../hotslot.example.toml");
    Config::parse(example).unwrap();
    // Every commented key is a real one.
    let uncommented: String =
        example.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect::<Vec<_>>().join("\n");
    // A unix socket does not use TLS.
    let uncommented =
        uncommented.replace("listen = \"unix:/run/hotslot/api.sock\"", "listen = \"0.0.0.0:9774\"");
    assert!(Config::parse(&uncommented).unwrap().api.tls.is_some());
}

#[test]
fn a_port_needs_callers_who_are_identified() {
    const TCP: &str = "[api]\nlisten = '127.0.0.1:0'\n";
    let headers = "identity = 'headers'\n";
    let tls = |more: &str| format!("[api.tls]\ncertificate = '/a'\nkey = '/b'\n{more}");
    for (more, says) in [
        ("", "nothing identifies them"),
        (headers, "nothing identifies them"),
        ("proxy_secret_file = '/s'\n", "with identity = \"headers\" only"),
        ("[identity]\ntokens = 'tokens'\n", "absolute path"),
        (
            "identity = 'headers'\nproxy_secret_file = '/s'\n[identity]\ntokens = '/t'\n",
            "remove one or the other",
        ),
        ("[[identity.local]]\nuser = 'a'\nrole = 'admin'\n", "nothing identifies them"),
        // A client certificate alone does not identify a caller.
        (&tls("client_ca = '/c'\n"), "nothing identifies them"),
        (&format!("{headers}{}", tls("")), "nothing identifies them"),
        (
            &format!("{headers}{}", tls("client_ca = '/c'\nclient_certificates = 'optional'\n")),
            "nothing identifies them",
        ),
    ] {
        let message = error(&format!("{TCP}{more}"));
        assert!(message.contains(says), "{more}: {message}");
    }
    for more in [
        "insecure_tcp = true\n",
        "identity = 'headers'\nproxy_secret_file = '/s'\n",
        "[identity]\ntokens = '/t'\n",
        &format!("{headers}{}", tls("client_ca = '/c'\n")),
    ] {
        Config::parse(&format!("{TCP}{more}")).unwrap();
    }
    for (more, accepted) in [("", false), ("client_ca = '/c'\n", true)] {
        let text = format!("{TCP}{headers}{}", tls(more)).replace("127.0.0.1", "192.0.2.1");
        assert_eq!(Config::parse(&text).is_ok(), accepted, "{text}");
    }
    Config::parse("[api]\nidentity = 'headers'").unwrap();
}

#[test]
fn local_users_have_a_name_and_a_known_role() {
    for (entry, says) in [
        ("role = 'admin'", "either user or group"),
        ("user = 'a'\ngroup = 'b'\nrole = 'admin'", "either user or group"),
        ("user = ''\nrole = 'admin'", "empty"),
        ("user = 'a'\nrole = 'root'", "reader, member, manager, admin or service"),
        ("user = 'a'\nrole = 'reader'\nproject = ''", "omit it"),
        ("user = -1\nrole = 'reader'", "a name or a number"),
    ] {
        let message = error(&format!("[[identity.local]]\n{entry}"));
        assert!(message.contains(says), "{entry}: {message}");
    }
    let text = "[[identity.local]]\nuser = 1000\nrole = 'reader'\n[[identity.local]]\ngroup = '27'\nrole = 'service'";
    let local = Config::parse(text).unwrap().identity.local;
    assert_eq!((&local[0].user, &local[1].group), (&Some(Account::Id(1000)), &Some(Account::Id(27))));
}
