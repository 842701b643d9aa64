//! The notifications to the service manager.

use std::{
    fs,
    os::unix::net::UnixDatagram,
    process::{Command, Stdio},
    time::Duration,
};

#[test]
fn systemd_is_told_when_it_is_ready_and_when_it_stops() {
    let folder = std::env::temp_dir().join(format!("chat3-gateway-notify-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let receive = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect("a notification in time");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };

    let mut gateway = Command::new(env!("CARGO_BIN_EXE_chat3-gateway"))
        .args(["dev", "--port", "0", "--log-file", ""])
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(receive().trim(), "READY=1");
    let pid = gateway.id().to_string();
    assert!(Command::new("kill").arg(pid).status().unwrap().success());
    assert_eq!(receive().trim(), "STOPPING=1");
    assert_eq!(gateway.wait().unwrap().code(), Some(0));
    fs::remove_dir_all(folder).unwrap();
}
