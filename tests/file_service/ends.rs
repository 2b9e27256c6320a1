//! Transfers that end early: either side is killed, the user cancels, the server drains.

use crate::processes::{Carrier, Client, Directory, Server, content, until};

const CARRIERS: [Carrier; 2] = [Carrier::WebRtc, Carrier::WebSocket];

/// Twelve seconds at [`SLOW`]: far more than until a test has seen the first part of it.
const SIZE: usize = 12 << 20;
const SLOW: [&str; 2] = ["--rate", "1048576"];

/// Exit codes of a client.
const TRY_AGAIN: i32 = 75;
const INTERRUPTED: i32 = 130;

/// What has to be on a disk before something ends.
const SOME: u64 = 512 << 10;

fn upload_of_a_killed_server_resumes(carrier: Carrier) {
    let directory = Directory::new();
    let key = directory.path("client.key");
    let source = directory.write("file", &content(SIZE));
    let server = Server::start(&directory, &SLOW);
    let arguments = |server: &Server| {
        let address = server.address(carrier).to_owned();
        [
            "put".into(),
            "--identity".into(),
            key.clone(),
            address,
            source.clone(),
        ]
    };
    let put = |server: &Server| {
        let arguments = arguments(server);
        Client::start(&arguments.each_ref().map(String::as_str))
    };
    let mut client = put(&server);
    client.until_progress();
    until("a part", || {
        directory.parts().iter().any(|part| *part > SOME)
    });
    server.kill();
    client.end().fails(TRY_AGAIN, "the same command resumes");
    assert_eq!(directory.stored("file"), None);
    assert_eq!(directory.parts().len(), 1);

    let server = Server::start(&directory, &[]);
    let again = put(&server).end();
    let resumed = again.resumed(SIZE);
    assert!((SOME..SIZE as u64).contains(&resumed), "{resumed}");
    assert!(directory.stored("file") == Some(content(SIZE)));
    directory.has_no_parts();
    server.stop();
}

#[test]
fn an_upload_resumes_after_the_server_was_killed_over_webrtc() {
    upload_of_a_killed_server_resumes(Carrier::WebRtc);
}

#[test]
fn an_upload_resumes_after_the_server_was_killed_over_a_websocket() {
    upload_of_a_killed_server_resumes(Carrier::WebSocket);
}

fn download_of_a_killed_server_resumes(carrier: Carrier) {
    let directory = Directory::new();
    let source = directory.write("file", &content(SIZE));
    let server = Server::start(&directory, &[]);
    let put = Client::start(&["put", server.address(carrier), &source]).end();
    put.succeeds(&format!("{SIZE} bytes, of which 0 were there already\n"));
    server.stop();

    let server = Server::start(&directory, &SLOW);
    let into = directory.path("fetched");
    let get =
        |server: &Server| Client::start(&["get", "--into", &into, server.address(carrier), "file"]);
    let mut client = get(&server);
    client.until_progress();
    until("a part", || directory.fetched_part("file") > SOME);
    server.kill();
    client.end().fails(TRY_AGAIN, "the same command resumes");
    assert_eq!(directory.fetched("file"), None);

    let server = Server::start(&directory, &[]);
    let again = get(&server).end();
    let resumed = again.resumed(SIZE);
    assert!((SOME..SIZE as u64).contains(&resumed), "{resumed}");
    assert!(directory.fetched("file") == Some(content(SIZE)));
    assert_eq!(directory.fetched_part("file"), 0);
    server.stop();
}

#[test]
fn a_download_resumes_after_the_server_was_killed_over_webrtc() {
    download_of_a_killed_server_resumes(Carrier::WebRtc);
}

#[test]
fn a_download_resumes_after_the_server_was_killed_over_a_websocket() {
    download_of_a_killed_server_resumes(Carrier::WebSocket);
}

/// The server may not have noticed yet that the connection is dead, and hold the part still.
#[test]
fn an_upload_resumes_after_the_client_was_killed() {
    for carrier in CARRIERS {
        let directory = Directory::new();
        let key = directory.path("client.key");
        let source = directory.write("file", &content(SIZE));
        let server = Server::start(&directory, &["--rate", "4194304"]);
        let address = server.address(carrier);
        let arguments = ["put", "--identity", &key, address, &source];
        let client = Client::start(&arguments);
        until("a part", || {
            directory.parts().iter().any(|part| *part > SOME)
        });
        client.kill();
        assert_eq!(directory.stored("file"), None);
        let again = Client::start(&arguments).end();
        let resumed = again.resumed(SIZE);
        assert!((SOME..SIZE as u64).contains(&resumed), "{resumed}");
        assert!(directory.stored("file") == Some(content(SIZE)));
        directory.has_no_parts();
        server.until_idle();
        server.stop();
    }
}

/// As when the connection of the first is dead without a sign of it.
#[test]
fn an_upload_that_begins_again_ends_the_first_and_resumes_it() {
    for carrier in CARRIERS {
        let directory = Directory::new();
        let key = directory.path("client.key");
        let source = directory.write("file", &content(SIZE));
        let server = Server::start(&directory, &["--rate", "2097152"]);
        let address = server.address(carrier);
        let arguments = ["put", "--identity", &key, address, &source];
        let first = Client::start(&arguments);
        until("a part", || {
            directory.parts().iter().any(|part| *part > SOME)
        });
        let second = Client::start(&arguments);
        first
            .end()
            .fails(1, "refused: the same upload has begun again");
        let second = second.end();
        let resumed = second.resumed(SIZE);
        assert!((SOME..SIZE as u64).contains(&resumed), "{resumed}");
        assert!(directory.stored("file") == Some(content(SIZE)));
        directory.has_no_parts();
        server.until_idle();
        server.stop();
    }
}

/// Another peer that sends the same name gets nothing of the part.
#[test]
fn a_part_is_resumed_by_the_peer_that_has_begun_it_alone() {
    let directory = Directory::new();
    let [key, other] = ["client.key", "other.key"].map(|name| directory.path(name));
    let source = directory.write("file", &content(SIZE));
    let server = Server::start(&directory, &SLOW);
    let address = server.address(Carrier::WebRtc);
    let client = Client::start(&["put", "--identity", &key, address, &source]);
    until("a part", || {
        directory.parts().iter().any(|part| *part > SOME)
    });
    client.interrupt();
    client.end().fails(INTERRUPTED, "cancelled");
    server.until_idle();
    server.stop();

    let server = Server::start(&directory, &[]);
    let address = server.address(Carrier::WebRtc);
    let put = Client::start(&["put", "--identity", &other, address, &source]).end();
    assert_eq!(put.resumed(SIZE), 0);
    assert_eq!(directory.parts().len(), 1, "that of the first");
    let put = Client::start(&["put", "--identity", &key, address, &source]).end();
    put.fails(1, "refused: there is such a file");
    server.stop();
}

#[test]
fn a_cancelled_transfer_leaves_no_file_under_its_name() {
    for carrier in CARRIERS {
        let directory = Directory::new();
        let source = directory.write("file", &content(SIZE));
        let server = Server::start(&directory, &SLOW);
        let put = Client::start(&["put", server.address(carrier), &source]);
        until("a part", || {
            directory.parts().iter().any(|part| *part > SOME)
        });
        put.interrupt();
        put.end().fails(INTERRUPTED, "cancelled");
        // Well before the server would give up a silent client.
        server.until_idle();
        assert_eq!(directory.stored("file"), None);

        std::fs::write(directory.path("store/files/file"), content(SIZE)).expect("a file");
        let into = directory.path("fetched");
        let get = Client::start(&["get", "--into", &into, server.address(carrier), "file"]);
        until("a part", || directory.fetched_part("file") > SOME);
        get.interrupt();
        get.end().fails(INTERRUPTED, "cancelled");
        server.until_idle();
        assert_eq!(directory.fetched("file"), None);
        server.stop();
    }
}

#[test]
fn sigterm_lets_transfers_over_both_carriers_finish() {
    let directory = Directory::new();
    let size = 3 << 20;
    let server = Server::start(&directory, &SLOW);
    let mut clients = Vec::new();
    std::fs::write(directory.path("store/files/there"), content(size)).expect("a file");
    let mut names = Vec::new();
    for carrier in CARRIERS {
        let name = format!("{carrier:?}");
        let source = directory.write(&name, &content(size));
        names.push(name);
        clients.push(Client::start(&["put", server.address(carrier), &source]));
        let into = directory.path(&format!("into {carrier:?}"));
        std::fs::create_dir(&into).expect("a directory");
        clients.push(Client::start(&[
            "get",
            "--into",
            &into,
            server.address(carrier),
            "there",
        ]));
    }
    for client in &mut clients {
        client.until_progress();
    }
    server.terminate();
    until("the end of the HTTP server", || !server.listens());
    for client in clients {
        let ended = client.end();
        ended.succeeds(&format!("{size} bytes, of which 0 were there already\n"));
    }
    for name in names {
        assert!(directory.stored(&name) == Some(content(size)), "{name}");
        let fetched = std::fs::read(directory.path(&format!("into {name}/there")));
        assert!(fetched.expect("it was fetched") == content(size), "{name}");
    }
    directory.has_no_parts();
    server.ended();
}
