//! The owner of a domain, which is kept in its metadata.

use hotslot_driver::ownership::{Claim, NAMESPACE, Ownership};

use super::*;

async fn owner(host: &Host, guest: Uuid) -> Ownership {
    host.sim.domain(guest).await.unwrap().ownership()
}

#[tokio::test]
async fn an_owner_is_kept_in_both_documents_and_survives_restarts() {
    let mut host = Host::small();
    for guest in [Q35, SWITCH] {
        assert_eq!(owner(&host, guest).await, Ownership::default());
        host.sim.set_owner(guest, Some("p")).await.unwrap();
        host.sim.set_owner(guest, Some("7c1f&'<")).await.unwrap();
    }
    host = host.reopened();
    let expected = Ownership { hotslot: Claim::Project("7c1f&'<".into()), ..Ownership::default() };
    assert_eq!(owner(&host, SWITCH).await, expected);
    assert_eq!(owner(&host, Q35).await, expected);
    host.control("shutdown q35");
    assert_eq!(owner(&host, Q35).await, expected);
    host.control("start q35");
    assert_eq!(owner(&host, Q35).await, expected);
    host.sim.set_owner(Q35, None).await.unwrap();
    assert_eq!(owner(&host, Q35).await, Ownership::default());
    let missing = host.sim.set_owner(Uuid::nil(), Some("p")).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NoDomain);
}

#[tokio::test]
async fn a_guest_that_runs_with_other_metadata_than_its_definition_has_no_owner() {
    let host = Host::small();
    host.sim.set_owner(Q35, Some("p")).await.unwrap();
    let definition = fs::read_to_string(host.dir.path().join("domains/q35.xml")).unwrap();
    let metadata = format!("<metadata><h:owner xmlns:h='{NAMESPACE}' project='q'/></metadata><memory ");
    let file = host.dir.path().join("other.xml");
    fs::write(&file, definition.replacen("<memory ", &metadata, 1)).unwrap();
    host.control(&format!("define {}", file.display()));
    let found = owner(&host, Q35).await;
    assert_eq!(found.project(), None);
    assert!(found.to_string().contains("differs between the running guest and its definition"), "{found}");
    host.control("shutdown q35");
    assert_eq!(owner(&host, Q35).await.project(), Some("q"));
}
