//! Lists of one project beside many records of another: accelerator requests of project B, first alone, then with 70,000
//! of project A.

use std::time::{Duration, Instant};

use hotslot_tests::measure::report;
use hotslot_tests::{Hotslot, binary, host};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, SqliteConnection};

/// The number of accelerator requests of project A.
const MANY: u32 = 70_000;
/// The number of those of project B.
const FEW: usize = 20;

fn caller(project: &str, role: &str) -> Vec<(String, String)> {
    [("x-user-id", "u"), ("x-project-id", project), ("x-roles", role)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

async fn listed(service: &Hotslot, what: &str, project: &str, path: &str) -> f64 {
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        service.send_with(Method::GET, path, caller(project, "member"), None).await.expect(200);
        times.push(start.elapsed());
    }
    report(what, &mut times)
}

async fn post(service: &Hotslot, project: &str, role: &str, path: &str, body: Value) -> Duration {
    let start = Instant::now();
    service.send_with(Method::POST, path, caller(project, role), Some(body.to_string())).await.expect(201);
    start.elapsed()
}

#[tokio::main]
async fn main() {
    let built = binary().display().to_string();
    println!("{built}");
    let config = "[quota]\naccelerator_requests = -1\n";
    let mut service = Hotslot::with(&host("small"), config).await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    let groups = json!([{ "name": "one", "groups": [{ "resources:CUSTOM_A": "1" }] }]);
    post(&service, "a", "admin", "/accelerator/v2/device_profiles", groups).await;
    let (arqs, body) = ("/accelerator/v2/accelerator_requests", json!({ "device_profile_name": "one" }));
    for _ in 0..FEW {
        post(&service, "b", "member", arqs, body.clone()).await;
    }
    let alone = listed(&service, "B lists 20 requests, alone", "b", arqs).await;

    // The rows are written directly, because 70,000 requests over HTTP take long. The service is not running meanwhile.
    service.kill();
    let url = format!("sqlite://{}", service.database().display());
    let mut database = SqliteConnection::connect(&url).await.expect("the database");
    let rows = format!(
        "WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < {MANY})
         INSERT INTO accelerator_requests (id, uuid, profile_id, profile_group, resource_class, project_id, state, created_at)
         SELECT 1000 + n, printf('00000000-0000-4000-8000-%012d', n), (SELECT MAX(id) FROM device_profiles), 0,
             'CUSTOM_A', 'a', CASE n % 2 WHEN 0 THEN 'Unbound' ELSE 'Initial' END, n FROM number"
    );
    database.execute(sqlx::AssertSqlSafe(rows)).await.expect("rows");
    database.close().await.expect("close the database");
    service.start_again().await;
    let beside = listed(&service, "B lists 20 requests, A has 70,000", "b", arqs).await;
    println!("   over alone {:.2}", beside / alone);
    listed(&service, "A lists its first 100", "a", &format!("{arqs}?limit=100")).await;
    let mut created = Vec::new();
    for _ in 0..20 {
        created.push(post(&service, "b", "member", arqs, body.clone()).await);
    }
    report("B creates a request, A has 70,000", &mut created);
}
