//! Stock `rsync` on stock `ssh` on `postern proxy`.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::Path;

use lab::stack::login_user;

use super::{Stormy, Trial};
use crate::harness::{eventually, noise, postern, run_within};

const SMALL_FILES: usize = 200;
/// Files are written and compared in such pieces.
const PIECE: usize = 8 << 20;

/// A file of so many bytes, no two pieces of which are alike.
fn make(path: &Path, length: usize) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    let noise = noise(2 * PIECE);
    let mut left = length;
    for number in 0.. {
        let piece = &noise[number % PIECE..][..left.min(PIECE)];
        file.write_all(piece).unwrap();
        left -= piece.len();
        if left == 0 {
            break;
        }
    }
    file.flush().unwrap();
}

fn same(one: &Path, other: &Path) -> bool {
    let (mut one, mut other) = (File::open(one).unwrap(), File::open(other).unwrap());
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        for (file, piece) in [(&mut one, &mut left), (&mut other, &mut right)] {
            piece.clear();
            file.take(PIECE as u64).read_to_end(piece).unwrap();
        }
        if left != right || left.is_empty() {
            return left == right;
        }
    }
}

#[tokio::test]
async fn stock_rsync_through_proxy_goes_on_through_cuts() {
    let trial = Trial::new(48 << 20);
    let stormy = Stormy::new().await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let config = postern(&stormy.lab, &["ssh-config"]).await.status(0).out();
    std::fs::write(path("config"), config).unwrap();
    let (from, to) = (path("from"), path("to"));
    std::fs::create_dir(&from).unwrap();
    for number in 0..SMALL_FILES {
        let name = from.join(format!("{number}.txt"));
        std::fs::write(name, format!("file {number}\n")).unwrap();
    }
    make(&from.join("large"), trial.copy);
    let mut command = stormy.over(stormy.lab.command("rsync"));
    command
        .args(["-a", "--bwlimit=32m", "-e"])
        .arg(format!("ssh -F {}", path("config").display()))
        .arg(format!("{}/", from.display()))
        .arg(format!("{}@web-1.postern:{}", login_user(), to.display()));
    let storm = async {
        // Its session is granted.
        eventually("rsync runs", async || to.exists().then_some(())).await;
        stormy.network.weather(trial.spread(trial.copy)).await
    };
    let (told, toll) = tokio::join!(run_within(trial.patience(), &mut command, b""), storm);
    told.status(0);
    assert!(same(&from.join("large"), &to.join("large")));
    for number in 0..SMALL_FILES {
        let copied = std::fs::read_to_string(to.join(format!("{number}.txt"))).unwrap();
        assert_eq!(copied, format!("file {number}\n"));
    }
    stormy.end(toll).await;
}
