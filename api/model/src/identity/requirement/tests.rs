use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::identity::{User, Via};

fn caller(roles: &[&str], project: Option<&str>) -> Caller {
    let roles: BTreeSet<_> = roles.iter().map(|&role| role.to_owned()).collect();
    let user = User { id: "u".into(), name: "u".into() };
    Caller::with_roles(Some(user), roles, project.map(str::to_owned), Via::Keystone)
}

#[test]
fn expressions_are_read_as_oslo_policy_reads_them() {
    for (text, same) in [
        ("", "@"),
        ("role:Admin", "role:admin"),
        ("is_admin", "is_admin:True"),
        ("role:a or role:b and role:c", "(role:a or (role:b and role:c))"),
        ("(role:a OR role:b) and NOT role:c", "((role:a or role:b) and not role:c)"),
        ("not (role:a and (service))", "not (role:a and service)"),
        ("rule:os_compute_api:os-pci:index", "rule:os_compute_api:os-pci:index"),
        ("(role:member and project_id:%(project_id)s)", "(role:member and project_id:%(project_id)s)"),
    ] {
        assert_eq!(text.parse::<Requirement>().unwrap().to_string(), same, "{text}");
    }
    for (text, says) in [
        ("role:", "is not a check"),
        ("admin", "is not a check"),
        ("user_id:%(user_id)s", "is not a check"),
        ("http://example.org/", "is not a check"),
        ("role:a role:b", "follow each other"),
        ("role:a and", "ends where"),
        ("and role:a", "both sides"),
        ("(role:a", "not closed"),
        ("role:a)", "not opened"),
        ("()", "expected"),
        ("not", "ends where"),
    ] {
        let message = text.parse::<Requirement>().unwrap_err();
        assert!(message.contains(says), "{text}: {message}");
    }
    let deep = format!("{}role:a{}", "(".repeat(2000), ")".repeat(2000));
    assert!(deep.parse::<Requirement>().unwrap_err().contains("nested"));
    assert!("not ".repeat(1000).parse::<Requirement>().is_err());
    assert!("role:a or ".repeat(1000).parse::<Requirement>().unwrap_err().contains("bytes"));
}

#[test]
fn a_project_is_checked_when_the_target_is_known() {
    let rule: Requirement = "role:admin or (role:reader and project_id:%(project_id)s)".parse().unwrap();
    let met = |caller: &Caller, target| rule.is_met(caller, target, &BTreeMap::new());
    let reader = caller(&["reader"], Some("p"));
    assert_eq!(met(&reader, Target::Unknown), None);
    assert_eq!(met(&reader, Target::Of(Some("p"))), Some(true));
    assert_eq!(met(&reader, Target::Of(Some("q"))), Some(false));
    assert_eq!(met(&reader, Target::Of(None)), Some(false));
    assert_eq!(met(&caller(&["admin"], Some("q")), Target::Unknown), Some(true));
    for refused in [caller(&[], Some("p")), caller(&["reader"], None)] {
        assert_eq!(met(&refused, Target::Unknown), Some(false));
    }
}

fn any_requirement() -> impl Strategy<Value = Requirement> {
    let name = "[a-z][a-z0-9_.-]{0,5}";
    let leaf = prop_oneof![
        Just(Requirement::Always),
        Just(Requirement::Never),
        prop_oneof![Just("admin".to_owned()), Just("reader".to_owned()), name.prop_map(|name| name)]
            .prop_map(Requirement::Role),
        Just(Requirement::Admin),
        Just(Requirement::SystemScope),
        Just(Requirement::OwnProject),
        Just(Requirement::Service),
        name.prop_map(Requirement::Rule),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| Requirement::Not(Box::new(one))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Requirement::And),
            prop::collection::vec(inner, 2..4).prop_map(Requirement::Or),
        ]
    })
}

/// The plain boolean value, as a second opinion.
fn holds(rule: &Requirement, caller: &Caller, project: Option<&str>) -> bool {
    match rule {
        Requirement::Always => true,
        Requirement::Never | Requirement::Rule(_) => false,
        Requirement::Role(name) => caller.has_role(name),
        Requirement::Admin => caller.is_admin(),
        Requirement::SystemScope => caller.project.is_none(),
        Requirement::OwnProject => caller.project.is_some() && caller.project.as_deref() == project,
        Requirement::Service => caller.roles.contains("service"),
        Requirement::Not(one) => !holds(one, caller, project),
        Requirement::And(all) => all.iter().all(|one| holds(one, caller, project)),
        Requirement::Or(any) => any.iter().any(|one| holds(one, caller, project)),
    }
}

proptest! {
    #[test]
    fn a_written_requirement_is_read_as_the_same(rule in any_requirement()) {
        prop_assert_eq!(rule.to_string().parse::<Requirement>(), Ok(rule));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "[ ()@!a-z:%]{0,40}|(role:a|and|or|not|[()]| ){0,20}|.{0,60}") {
        if let Ok(rule) = text.parse::<Requirement>() {
            prop_assert_eq!(rule.to_string().parse::<Requirement>(), Ok(rule));
        }
    }

    #[test]
    fn what_is_decided_without_a_target_is_so_for_every_target(
        rule in any_requirement(),
        roles in prop::sample::subsequence(vec!["reader", "member", "admin", "service", "x"], 0..4),
        own in prop::option::of("[pq]"),
        project in prop::option::of("[pq]"),
    ) {
        let (caller, rules) = (caller(&roles, own.as_deref()), BTreeMap::new());
        let plain = holds(&rule, &caller, project.as_deref());
        prop_assert_eq!(rule.is_met(&caller, Target::Of(project.as_deref()), &rules), Some(plain));
        if let Some(early) = rule.is_met(&caller, Target::Unknown, &rules) {
            prop_assert_eq!(early, plain);
        }
    }
}
