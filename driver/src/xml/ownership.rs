//! Reads the owner of a guest from the `<metadata>` of its domain, and writes hotslot's own element.

use super::tree::Element;
use crate::ownership::{Claim, NAMESPACE, Ownership};

/// The namespace of OpenStack Nova's metadata, without the version that follows.
pub(super) const NOVA: &str = "http://openstack.org/xmlns/libvirt/nova/";

/// Reads the owner of a domain. Elements count only where Nova and libvirt put them: `<metadata>` is a child of the
/// domain, and the element of each program is a child of `<metadata>`.
pub(super) fn read(domain: &Element<'_>) -> Ownership {
    let claim = |is: fn(&Element<'_>) -> bool, read: fn(&Element<'_>) -> Claim| {
        let metadata = domain.children.iter().filter(|child| child.is("metadata"));
        let mut own = metadata.flat_map(|metadata| &metadata.children).filter(|element| is(element));
        match (own.next(), own.next()) {
            (None, _) => Claim::Absent,
            (Some(element), None) => read(element),
            (Some(_), Some(_)) => Claim::Invalid("is there several times"),
        }
    };
    Ownership { nova: claim(is_nova, of_nova), hotslot: claim(is_own, of_hotslot) }
}

fn is_nova(element: &Element<'_>) -> bool {
    element.namespace().is_some_and(|namespace| namespace.starts_with(NOVA))
}

/// Whether an element is hotslot's own.
pub(crate) fn is_own(element: &Element<'_>) -> bool {
    element.namespace() == Some(NAMESPACE)
}

/// Nova (`nova/virt/libvirt/config.py`, `LibvirtConfigGuestMetaNovaOwner`) writes one `<nova:project>` in one
/// `<nova:owner>` in one `<nova:instance>`.
fn of_nova(element: &Element<'_>) -> Claim {
    let named = |name: &'static str| move |node: &&Element<'_>| is_nova(node) && node.local_name() == name;
    let instances = [element].into_iter().filter(named("instance"));
    let owners = instances.flat_map(|node| &node.children).filter(named("owner"));
    let projects = owners.flat_map(|node| &node.children).filter(named("project"));
    Claim::of(projects.map(|project| project.attribute("uuid")))
}

fn of_hotslot(element: &Element<'_>) -> Claim {
    Claim::of([element.attribute("project").filter(|_| element.local_name() == "owner")])
}

/// Returns hotslot's own element, as it is given to libvirt, which adds the namespace and its prefix.
pub(crate) fn element(project: &str) -> String {
    Element::new("owner", &[("project", project)]).write()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOVA11: &str = "http://openstack.org/xmlns/libvirt/nova/1.1";

    fn owner(metadata: &str) -> Ownership {
        read(&Element::parse(&format!("<domain>{metadata}</domain>")).unwrap())
    }

    fn nova(inside: &str) -> String {
        format!("<nova:instance xmlns:nova='{NOVA11}'>{inside}</nova:instance>")
    }

    fn projects(ids: &[&str]) -> String {
        let one = |id: &&str| format!("<nova:project uuid='{id}'>name</nova:project>");
        format!("<nova:owner>{}</nova:owner>", ids.iter().map(one).collect::<String>())
    }

    fn own(project: &str) -> String {
        format!("<hotslot:owner xmlns:hotslot='{NAMESPACE}' project='{project}'/>")
    }

    #[test]
    fn one_project_of_one_program_is_the_owner() {
        for metadata in [
            nova(&projects(&["p"])),
            own("p"),
            format!("<other xmlns='urn:x'/>{}", own("p")),
            format!(
                "<i:instance xmlns:i='{NOVA11}'><i:owner><i:user uuid='u'/><i:project uuid='p'/></i:owner></i:instance>"
            ),
        ] {
            let found = owner(&format!("<name>g</name><metadata>{metadata}</metadata>"));
            assert_eq!((found.project(), found.problem()), (Some("p"), None), "{metadata}");
        }
        for metadata in ["", "<metadata/>", "<metadata><owner project='p'/></metadata>"] {
            assert_eq!(owner(metadata), Ownership::default(), "{metadata}");
        }
    }

    #[test]
    fn unclear_or_misplaced_metadata_gives_no_owner() {
        let project = projects(&["p"]);
        for (metadata, says) in [
            (nova(""), "Nova's metadata names no project"),
            (nova("<nova:owner/>"), "names no project"),
            (nova("<nova:owner><nova:project>p</nova:project></nova:owner>"), "names no project"),
            (nova("<nova:project uuid='p'/>"), "names no project"),
            (nova(&format!("<nova:flavor>{project}</nova:flavor>")), "names no project"),
            (nova("<owner><project uuid='p'/></owner>"), "names no project"),
            (nova(&projects(&["p", "q"])), "names several"),
            (nova(&projects(&["p", "p"])), "names several"),
            (nova(&format!("{project}{project}")), "names several"),
            (nova(&project) + &nova(&project), "is there several times"),
            (nova(&projects(&[""])), "not valid"),
            (nova(&projects(&[" p"])), "not valid"),
            (nova(&projects(&["p&#10;"])), "not valid"),
            (nova(&projects(&["pr\u{f6}j"])), "not valid"),
            (nova(&projects(&["p"])) + &own("p"), "both Nova's and hotslot's"),
            (nova("") + &own("p"), "Nova's metadata names no project"),
            (own("p") + &own("p"), "hotslot's metadata is there several times"),
            (own(""), "hotslot's metadata names a project whose id is not valid"),
            (own(&"p".repeat(256)), "not valid"),
            (format!("<owner xmlns='{NAMESPACE}'/>"), "names no project"),
            (format!("<group xmlns='{NAMESPACE}' project='p'/>"), "names no project"),
        ] {
            let found = owner(&format!("<metadata>{metadata}</metadata>"));
            assert_eq!(found.project(), None, "{metadata}");
            assert!(found.problem().is_some_and(|problem| problem.contains(says)), "{metadata}: {found}");
        }
        for elsewhere in [
            own("p"),
            format!("<devices><metadata>{}</metadata></devices>", own("p")),
            format!("<metadata><x xmlns='urn:x'>{}</x></metadata>", nova(&project)),
            format!("<metadata xmlns='urn:x'>{}</metadata>", own("p")),
        ] {
            assert_eq!(owner(&elsewhere), Ownership::default(), "{elsewhere}");
        }
    }

    #[test]
    fn the_running_guest_and_its_definition_must_agree() {
        let of = |metadata: &str| owner(&format!("<metadata>{metadata}</metadata>"));
        let (p, q, none) = (of(&own("p")), of(&own("q")), Ownership::default());
        assert_eq!((p.and(&p).project(), none.and(&none)), (Some("p"), none.clone()));
        for (one, other) in [(&p, &q), (&p, &none), (&none, &p), (&p, &of(&nova(&projects(&["p"]))))] {
            let both = one.and(other);
            assert_eq!(both.project(), None);
            assert!(both.problem().is_some_and(|problem| problem.contains("differs")), "{both}");
        }
    }

    proptest! {
        #[test]
        fn every_valid_project_is_read_as_it_was_written(project in "[!-~]{1,255}") {
            let text = element(&project).replacen("<owner", &format!("<h:owner xmlns:h='{NAMESPACE}'"), 1);
            let read = owner(&format!("<metadata>{text}</metadata>"));
            prop_assert_eq!(read.project(), Some(project.as_str()));
        }

        #[test]
        fn only_valid_projects_are_owners(project in "\\PC{0,8}|.{0,300}") {
            let text = Element::new("owner", &[("xmlns", NAMESPACE), ("project", &project)]).write();
            if let Ok(tree) = Element::parse(&format!("<domain><metadata>{text}</metadata></domain>")) {
                let read = read(&tree);
                let valid = crate::ownership::check(&project).is_ok();
                prop_assert_eq!(read.project(), Some(project.as_str()).filter(|_| valid));
            }
        }

        /// Whatever the metadata is, it names an owner only if exactly one program names exactly one project.
        #[test]
        fn no_metadata_has_two_owners(
            parts in proptest::collection::vec(prop_oneof![
                Just(own("p")), Just(own("q")), Just(nova(&projects(&["p"]))), Just(nova(&projects(&["p", "q"]))),
                Just(nova("")), Just("<x xmlns='urn:x'/>".to_owned()),
            ], 0..5),
        ) {
            let found = owner(&format!("<metadata>{}</metadata>", parts.concat()));
            let claims: Vec<_> = parts.iter().filter(|part| !part.starts_with("<x")).collect();
            let single = claims.len() == 1 && !claims[0].contains("uuid='q'") && claims[0] != &nova("");
            prop_assert_eq!(found.project().is_some(), single);
        }
    }
}
