//! A disk that is full, or nearly: nothing is lost, and the member says what is wrong.

use std::process::{Command, Stdio};
use std::time::Duration;

use pontoon::pb::etcdserverpb::alarm_request::AlarmAction;
use pontoon::pb::etcdserverpb::maintenance_client::MaintenanceClient;
use pontoon::pb::etcdserverpb::{AlarmRequest, AlarmType};
use tonic::Code;

use super::delete;
use super::start::Lone;
use crate::support::cluster::{PATIENCE, machine};
use crate::support::process::{await_exit, kill_and_reap, spawn_logged, tail, wait_for};
use crate::support::rpc::{Client, Request, channel};

/// A small file system, if this process may mount one.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(size: &str) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = format!("size={size}");
        let mut command = Command::new("mount");
        command
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null());
        command
            .status()
            .is_ok_and(|status| status.success())
            .then_some(SmallDisk { dir })
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = Command::new("mount")
            .args(["-o", &options])
            .arg(self.dir.path())
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "a mounted tmpfs can grow"
        );
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

async fn await_serving(client: &Client) {
    wait_for(PATIENCE, "the member to serve", || {
        let mut client = client.clone();
        async move { client.get("ready").await.ok() }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing() {
    let Some(disk) = SmallDisk::mount("300m") else {
        println!("skipped: this process may not mount a small disk");
        return;
    };
    let _machine = machine().await;
    let log = disk.dir.path().with_extension("log");
    let data_dir = disk.dir.path().join("data");
    let member = Lone::new("n1", &data_dir);
    // Without the early warning, so that it really fills up.
    let mut command = member.command();
    command.args(["--disk-reserve-bytes", "0"]);
    let mut process = spawn_logged(&mut command, &log);
    let mut client = Client::new(&member.client_url());
    await_serving(&client).await;
    let value = "v".repeat(1 << 20);
    let mut acknowledged = 0;
    let refusal = loop {
        let key = format!("key {acknowledged}");
        let put = client.put(&key, &value);
        match tokio::time::timeout(Duration::from_secs(15), put).await {
            Ok(Ok(_)) => acknowledged += 1,
            Ok(Err(status)) => break status.to_string(),
            Err(_) => break "no answer".to_string(),
        }
        assert!(acknowledged < 1000, "the disk never filled up");
    };
    println!("full after {acknowledged} MiB: {refusal}");
    let ended = tokio::time::timeout(Duration::from_secs(10), await_exit(&mut process)).await;
    println!(
        "the process {}",
        ended.map_or("goes on".to_string(), |status| format!("ended with {status}"))
    );
    kill_and_reap(&mut process);
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(!said.contains("panicked"), "{said}");
    assert!(
        said.contains("No space left on device"),
        "the log doesn't say what is wrong: {}",
        tail(&log)
    );
    disk.grow("2g");
    let mut process = spawn_logged(&mut member.command(), &log);
    await_serving(&client).await;
    for number in 0..acknowledged {
        let found = client.get(&format!("key {number}")).await.expect("a get");
        assert_eq!(
            found.as_ref(),
            Some(&value),
            "key {number} was acknowledged and is not there"
        );
    }
    kill_and_reap(&mut process);
    let _ = std::fs::remove_file(&log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_nearly_full_stops_writes_and_not_the_member() {
    let Some(disk) = SmallDisk::mount("300m") else {
        println!("skipped: this process may not mount a small disk");
        return;
    };
    let _machine = machine().await;
    let log = disk.dir.path().with_extension("log");
    let data_dir = disk.dir.path().join("data");
    let member = Lone::new("n1", &data_dir);
    let mut command = member.command();
    command.args(["--disk-reserve-bytes", "104857600"]);
    let mut process = spawn_logged(&mut command, &log);
    let mut client = Client::new(&member.client_url());
    await_serving(&client).await;
    let value = "v".repeat(1 << 20);
    let mut acknowledged = 0;
    let refused = loop {
        match client.put(&format!("key {acknowledged}"), &value).await {
            Ok(_) => acknowledged += 1,
            Err(refused) => break refused,
        }
        assert!(acknowledged < 1000, "the disk is not watched");
    };
    println!("nearly full after {acknowledged} MiB");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // The member goes on: what is there can be read, and room can be made.
    assert_eq!(client.get("key 0").await.expect("a read"), Some(value.clone()));
    client
        .call(Request::Delete(delete("key 0", "")))
        .await
        .expect("a delete");
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(said.contains("the disk is nearly full"), "{}", tail(&log));
    disk.grow("2g");
    let mut maintenance = MaintenanceClient::new(channel(&member.client_url()));
    let what = "writes to go on once the alarm is cleared";
    wait_for(PATIENCE, what, || {
        let (mut maintenance, mut client) = (maintenance.clone(), client.clone());
        async move {
            let alarms = maintenance
                .alarm(AlarmRequest::default())
                .await
                .ok()?
                .into_inner()
                .alarms;
            for alarm in alarms {
                assert_eq!(alarm.alarm(), AlarmType::Nospace);
                let clear = AlarmRequest {
                    action: AlarmAction::Deactivate as i32,
                    member_id: alarm.member_id,
                    alarm: alarm.alarm,
                };
                maintenance.alarm(clear).await.ok()?;
            }
            client.put("small", "v").await.ok()
        }
    })
    .await;
    let alarms = maintenance
        .alarm(AlarmRequest::default())
        .await
        .expect("alarms")
        .into_inner()
        .alarms;
    assert_eq!(alarms, []);
    assert_eq!(client.get("key 1").await.expect("a read"), Some(value));
    kill_and_reap(&mut process);
    let _ = std::fs::remove_file(&log);
}
