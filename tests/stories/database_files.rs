//! The files of the SQLite database: their owner and mode, symbolic links to them, and their backups.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use hotslot_tests::{Hotslot, Q35, binary};

use crate::users::{as_nobody, chmod, mode, refused_to_serve};

/// Returns the modes of a database's directory and of its files, by name.
fn modes(database: &Path) -> BTreeMap<String, u32> {
    let name = database.file_name().unwrap().to_str().unwrap();
    let directory = database.parent().unwrap();
    let mut all = BTreeMap::from([(".".to_owned(), mode(directory))]);
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file.starts_with(name) {
            all.insert(file, mode(&entry.path()));
        }
    }
    all
}

#[tokio::test]
async fn other_users_can_neither_read_nor_lock_the_database() {
    let mut service = Hotslot::on("small").await;
    service.attach(Q35, "vf:1").await.expect(200);
    let database = service.database();
    // The modes that an earlier version left under a usual umask.
    service.kill();
    chmod(database.parent().unwrap(), 0o755);
    for file in ["", "-wal", "-shm", ".lock"] {
        let file = format!("{}{file}", database.display());
        fs::OpenOptions::new().append(true).create(true).open(&file).unwrap();
        chmod(Path::new(&file), 0o644);
    }
    let log = service.log_length();
    service.start_again_after("umask 0").await;
    // The directory also holds the configuration and the simulated host, so its mode is not changed.
    let found = modes(&database);
    assert!(found.keys().any(|name| name.ends_with("-shm")), "{found:?}");
    for (name, mode) in &found {
        assert_eq!(*mode, if name == "." { 0o755 } else { 0o600 }, "{name}: {found:?}");
    }
    let log = service.log_from(log);
    assert!(log.contains("hotslot.db was open to other users (0644)"), "{log}");
    assert!(log.contains("which is open to other users (0755)"), "{log}");

    // The files are protected by their own modes, too.
    chmod(database.parent().unwrap(), 0o755);
    let file = database.display();
    for line in [
        format!("cat {file}"),
        format!("cat {file}-wal"),
        format!("flock -n {file}.lock true"),
        format!("flock -n -s {file}.lock true"),
        format!("exec 3<{file}-shm"),
    ] {
        let output = as_nobody(&line);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("ermission denied"), "{line}: {output:?}");
    }
    chmod(database.parent().unwrap(), 0o700);
    service.attach(Q35, "vf:1").await.expect(200);
}

#[tokio::test]
async fn new_databases_and_backups_are_private_with_any_umask() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o755);
    let database = dir.path().join("new/hotslot.db");
    service.reconfigure(&service.database().display().to_string(), &database.display().to_string());
    service.start_again_after("umask 0").await;
    let found = modes(&database);
    assert!(found.len() >= 4, "{found:?}");
    assert!(found.iter().all(|(name, mode)| *mode == if name == "." { 0o700 } else { 0o600 }), "{found:?}");

    let config = dir.path().join("hotslot.toml");
    fs::write(&config, format!("[database]\nurl = \"sqlite://{}\"\n", database.display())).unwrap();
    let db = |verb: &str, file: &Path| {
        let line = format!(
            "umask 0; exec {} db {verb} {} --config {}",
            binary().display(),
            file.display(),
            config.display()
        );
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let backup = dir.path().join("backup.db");
    db("backup", &backup);
    assert_eq!((mode(&backup), mode(dir.path())), (0o600, 0o755), "a backup's directory is whoever's it is");
    service.kill();
    chmod(&backup, 0o644);
    db("restore", &backup);
    let found = modes(&database);
    assert!(found.iter().all(|(name, mode)| *mode == if name == "." { 0o700 } else { 0o600 }), "{found:?}");
    assert!(found.contains_key("hotslot.db.before-restore"), "{found:?}");
    service.start_again().await;
}

#[tokio::test]
async fn the_mode_of_a_shared_directory_is_not_changed() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    chmod(dir.path(), 0o755);
    chmod(&shared, 0o1777);
    let database = shared.join("hotslot.db");
    service.reconfigure(&service.database().display().to_string(), &database.display().to_string());
    service.start_again_after("umask 0").await;
    let found = modes(&database);
    assert!(found.iter().all(|(name, mode)| *mode == if name == "." { 0o1777 } else { 0o600 }), "{found:?}");
    assert!(service.log().contains("use a directory for hotslot alone"), "{}", service.log());
}

#[tokio::test]
async fn a_database_of_another_user_is_refused_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o1777);
    let config = dir.path().join("config.toml");
    for file in ["hotslot.db", "hotslot.db.lock", "hotslot.db-wal"] {
        let made = dir.path().join(file);
        fs::write(&made, "kept").unwrap();
        chown(&made, Some(65534), None).unwrap();
        chmod(&made, 0o666);
        let text = format!(
            "[api]\nlisten = \"127.0.0.1:0\"\ninsecure_tcp = true\n[database]\nurl = \"sqlite://{}/hotslot.db\"\n",
            dir.path().display()
        );
        fs::write(&config, text).unwrap();
        let output = Command::new(binary()).arg("serve").arg("--config").arg(&config).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains("belongs to the user 65534"), "{error}");
        assert!(error.contains(&format!("chown 0 {}", made.display())), "{error}");
        assert_eq!(fs::read_to_string(&made).unwrap(), "kept");
        fs::remove_file(&made).unwrap();
    }
}

#[tokio::test]
async fn the_suggested_chown_repairs_a_database_of_another_user() {
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o1777);
    let at = dir.path().join("its place");
    fs::create_dir(&at).unwrap();
    for file in ["hotslot.db", "hotslot.db.lock", "hotslot.db-wal"] {
        fs::write(at.join(file), "no database").unwrap();
        chown(at.join(file), Some(65534), None).unwrap();
    }
    let url = format!("sqlite://{}/hotslot.db", at.display());
    let error = refused_to_serve(dir.path(), &url);
    assert!(error.contains("belongs to the user 65534"), "{error}");
    assert!(!error.contains("check that its directory exists"), "{error}");
    let remedy = error.split_once("run: ").unwrap().1.split_once("; ").unwrap().0.replace('\n', " ");
    let done = Command::new("sh").args(["-c", &remedy]).output().unwrap();
    assert!(done.status.success(), "{remedy}: {done:?}");
    let error = refused_to_serve(dir.path(), &url);
    assert!(error.contains("is not a SQLite database"), "the owners are right now: {error}");
}

#[tokio::test]
async fn a_database_is_locked_under_all_of_its_names() {
    let service = Hotslot::on("small").await;
    let database = service.database();
    let dir = tempfile::tempdir().unwrap();
    let (link, far) = (dir.path().join("link.db"), dir.path().join("far.db"));
    std::os::unix::fs::symlink(&database, &far).unwrap();
    std::os::unix::fs::symlink("far.db", &link).unwrap();
    fs::create_dir(database.with_file_name("sub")).unwrap();
    let above = database.parent().unwrap().display();
    for url in [
        format!("sqlite://{}", database.display()),
        format!("sqlite://{}", link.display()),
        format!("sqlite://{above}/%68otslot.db"),
        format!("sqlite://{above}/sub/../hotslot.db"),
    ] {
        let error = refused_to_serve(dir.path(), &url);
        assert!(error.contains("another process has locked it"), "{url}: {error}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".lock")), "{left:?}");
}

#[tokio::test]
async fn backup_and_restore_follow_a_link_to_the_database() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().join("a place/real.db");
    let link = dir.path().join("link.db");
    fs::create_dir(real.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("a place/real.db", &link).unwrap();
    let own = service.database().display().to_string();
    // The link has no target yet.
    service.reconfigure(&own, &link.display().to_string().replace("link", "%6Cink"));
    service.start_again_after("umask 0").await;
    let found = modes(&real);
    assert!(found.keys().any(|name| name == "real.db.lock"), "{found:?}");
    assert!(found.iter().all(|(name, mode)| *mode == if name == "." { 0o700 } else { 0o600 }), "{found:?}");
    let config = service.host_dir().with_file_name("hotslot.toml");
    let backup = dir.path().join("backup");
    let db = |verb: &str| {
        let mut command = Command::new(binary());
        command.args(["db", verb]).arg(&backup).arg("--config").arg(&config).output().unwrap()
    };
    assert!(db("backup").status.success());
    let refused = db("restore");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stop it first"), "{refused:?}");
    service.kill();
    let restored = db("restore");
    assert!(restored.status.success(), "{restored:?}");
    assert!(link.is_symlink() && real.is_file() && !real.is_symlink());
    assert!(real.with_file_name("real.db.before-restore").is_file());
    service.start_again().await;
}
