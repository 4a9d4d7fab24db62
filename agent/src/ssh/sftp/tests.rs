use aws_lc_rs::digest::SHA256;
use postern_proto::wire::Writer;

use super::files::operation;
use super::*;

fn packet(body: Vec<u8>) -> Vec<u8> {
    Writer::new().vec32(&body).finish()
}

fn request(message_kind: u8, id: u32) -> Writer {
    Writer::new().u8(message_kind).u32(id)
}

fn open(id: u32, path: &str, flags: u32) -> Vec<u8> {
    packet(
        request(3, id)
            .vec32(path.as_bytes())
            .u32(flags)
            .u32(0)
            .finish(),
    )
}

fn write(id: u32, handle: &str, offset: u64, data: &[u8]) -> Vec<u8> {
    packet(
        request(6, id)
            .vec32(handle.as_bytes())
            .u64(offset)
            .vec32(data)
            .finish(),
    )
}

fn read(id: u32, handle: &str, offset: u64) -> Vec<u8> {
    packet(
        request(5, id)
            .vec32(handle.as_bytes())
            .u64(offset)
            .u32(32_768)
            .finish(),
    )
}

fn close(id: u32, handle: &str) -> Vec<u8> {
    packet(request(4, id).vec32(handle.as_bytes()).finish())
}

fn handle(id: u32, handle: &str) -> Vec<u8> {
    packet(request(102, id).vec32(handle.as_bytes()).finish())
}

fn data(id: u32, data: &[u8]) -> Vec<u8> {
    packet(request(103, id).vec32(data).finish())
}

fn status(id: u32, code: u32, text: &str) -> Vec<u8> {
    packet(
        request(101, id)
            .u32(code)
            .vec32(text.as_bytes())
            .vec32(b"")
            .finish(),
    )
}

fn sha256(data: &[u8]) -> Option<String> {
    Some(hex::encode(aws_lc_rs::digest::digest(&SHA256, data)))
}

/// An exchange: what the client (`true`) and the server say, in order.
fn follow(said: &[(bool, Vec<u8>)], step: usize) -> Vec<FileOperation> {
    let mut sftp = Sftp::default();
    let mut done = Vec::new();
    for (client, bytes) in said {
        for piece in bytes.chunks(step) {
            match client {
                true => sftp.follow_up(piece).unwrap(),
                false => sftp.follow_down(piece).unwrap(),
            }
            done.extend(sftp.take());
        }
    }
    done.extend(sftp.finish());
    done
}

fn an_upload() -> Vec<(bool, Vec<u8>)> {
    vec![
        (true, packet(Writer::new().u8(1).u32(3).finish())),
        (false, packet(Writer::new().u8(2).u32(3).finish())),
        (true, open(1, "/tmp/a", 0x1a)),
        (false, handle(1, "h")),
        (true, write(2, "h", 0, b"hello ")),
        (true, write(3, "h", 6, b"world")),
        (false, status(2, 0, "")),
        (false, status(3, 0, "")),
        (true, close(4, "h")),
        (false, status(4, 0, "")),
    ]
}

#[test]
fn an_upload_is_told_with_its_hash_however_the_bytes_are_cut() {
    for step in [1, 2, 5, 1000] {
        assert_eq!(
            follow(&an_upload(), step),
            [operation(
                "write",
                "/tmp/a".to_owned(),
                11,
                sha256(b"hello world"),
                None
            )]
        );
    }
}

#[test]
fn a_download_is_told_with_its_hash() {
    let done = follow(
        &[
            (true, open(1, "/etc/hosts", 1)),
            (false, handle(1, "h")),
            (true, read(2, "h", 0)),
            (true, read(3, "h", 3)),
            (true, read(4, "h", 6)),
            (false, data(2, b"abc")),
            (false, data(3, b"def")),
            (false, status(4, 1, "End of file")),
            (true, close(5, "h")),
            (false, status(5, 0, "")),
        ],
        7,
    );
    assert_eq!(
        done,
        [operation(
            "read",
            "/etc/hosts".to_owned(),
            6,
            sha256(b"abcdef"),
            None
        )]
    );
}

#[test]
fn content_out_of_order_has_a_size_and_no_hash() {
    let done = follow(
        &[
            (true, open(1, "a", 2)),
            (false, handle(1, "h")),
            (true, write(2, "h", 6, b"world")),
            (true, write(3, "h", 0, b"hello ")),
            (true, close(4, "h")),
            (false, status(4, 0, "")),
        ],
        1000,
    );
    assert_eq!(done, [operation("write", "a".to_owned(), 11, None, None)]);
}

#[test]
fn a_refused_file_and_a_failed_write_are_told_with_the_reason() {
    let done = follow(
        &[
            (true, open(1, "/etc/shadow", 1)),
            (false, status(1, 3, "Permission denied")),
            (true, open(2, "a", 2)),
            (false, handle(2, "h")),
            (true, write(3, "h", 0, b"x")),
            (false, status(3, 4, "No space\u{1b} left")),
            (true, close(4, "h")),
            (false, status(4, 0, "")),
        ],
        1000,
    );
    let denied = Some("Permission denied".to_owned());
    let full = Some("No space left".to_owned());
    assert_eq!(
        done,
        [
            operation("read", "/etc/shadow".to_owned(), 0, None, denied),
            operation("write", "a".to_owned(), 1, None, full),
        ]
    );
}

#[test]
fn changes_of_the_tree_are_told() {
    let two = |kind: u8, id: u32| packet(request(kind, id).vec32(b"a").vec32(b"b").finish());
    let one = |kind: u8, id: u32| packet(request(kind, id).vec32(b"a").u32(0).finish());
    let extended = |id: u32, name: &[u8]| {
        packet(
            request(200, id)
                .vec32(name)
                .vec32(b"a")
                .vec32(b"b")
                .finish(),
        )
    };
    let mut said = vec![
        (true, one(13, 1)),
        (true, one(14, 2)),
        (true, one(15, 3)),
        (true, two(18, 4)),
        (true, two(20, 5)),
        (true, one(9, 6)),
        (true, extended(7, b"posix-rename@openssh.com")),
        (true, extended(8, b"hardlink@openssh.com")),
        (true, extended(9, b"statvfs@openssh.com")),
        (true, extended(10, b"wipe@example.com")),
    ];
    said.extend((1..=10).map(|id| (false, status(id, 0, ""))));
    let done: Vec<_> = follow(&said, 1000)
        .into_iter()
        .map(|done| (done.operation, done.path, done.to.unwrap_or_default()))
        .collect();
    let expected = [
        ("remove", "a", ""),
        ("mkdir", "a", ""),
        ("rmdir", "a", ""),
        ("rename", "a", "b"),
        ("symlink", "b", "a"),
        ("setstat", "a", ""),
        ("rename", "a", "b"),
        ("link", "b", "a"),
        ("extension", "wipe@example.com", ""),
    ];
    assert_eq!(
        done,
        expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()))
    );
}

#[test]
fn a_file_that_is_never_closed_is_told_at_the_end() {
    let mut said = an_upload();
    said.truncate(said.len() - 2);
    let done = follow(&said, 1000);
    assert_eq!(done.len(), 1);
    assert_eq!((done[0].size, &done[0].sha256), (11, &None));
    assert!(
        done[0]
            .error
            .as_ref()
            .unwrap()
            .contains("before the file was closed")
    );
}

#[test]
fn what_is_not_sftp_is_an_error() {
    for bytes in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        &[0, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 6, 6, 0, 0, 0, 1, 0],
        &[0, 0, 0, 9, 3, 0, 0, 0, 1, 0xff, 0, 0, 0],
    ] {
        assert!(Sftp::default().follow_up(bytes).is_err(), "{bytes:?}");
    }
}

#[test]
fn requests_without_answers_are_bounded() {
    let mut sftp = Sftp::default();
    let failed = (0..u32::MAX).find(|id| sftp.follow_up(&read(*id, "h", 0)).is_err());
    assert_eq!(failed, Some(MAX_REQUESTS as u32));
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(
        up in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        down in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
    ) {
        let mut sftp = Sftp::default();
        let _ = sftp.follow_up(&up);
        let _ = sftp.follow_down(&down);
        let mut framed = Sftp::default();
        let _ = framed.follow_up(&packet(up));
        let _ = framed.follow_down(&packet(down));
        let _ = framed.finish();
    }
}
