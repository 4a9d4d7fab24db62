//! Many bytes, and files.

use super::*;

#[tokio::test]
async fn sixty_four_mebibytes_pass_both_ways_at_once_unchanged() {
    // With keys changed on the way by the client, by sshd, and by us.
    let agent = Agent::with_sshd(Sshd::start("RekeyLimit 9M").await).await;
    let mut command = agent.command("ssh");
    command
        .args(["-o", "RekeyLimit=7M", "web-1", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let sent = noise(64 * 1024 * 1024);
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut got = Vec::with_capacity(sent.len());
    let write = async {
        stdin.write_all(&sent).await.unwrap();
        drop(stdin);
    };
    within(async { tokio::join!(write, stdout.read_to_end(&mut got)).1.unwrap() }).await;
    assert!(
        got == sent,
        "{} of {} bytes came back",
        got.len(),
        sent.len()
    );
    assert!(within(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn scp_and_sftp_copy_both_ways_and_say_what_they_did() {
    let agent = Agent::start().await;
    let content = noise(3_000_000);
    let local = agent.folder.path().join("local");
    std::fs::write(&local, &content).unwrap();
    for old in [false, true] {
        let (there, back) = (
            agent.folder.path().join("there"),
            agent.folder.path().join("back"),
        );
        for (from, to) in [
            (
                local.display().to_string(),
                format!("web-1:{}", there.display()),
            ),
            (
                format!("web-1:{}", there.display()),
                back.display().to_string(),
            ),
        ] {
            let mut command = agent.command("scp");
            command.args(old.then_some("-O")).arg(from).arg(to);
            stdout(&run(command).await);
        }
        assert!(std::fs::read(&back).unwrap() == content);
        std::fs::remove_file(there).unwrap();
        std::fs::remove_file(back).unwrap();
    }
    let batch = agent.folder.write(
        "batch",
        &format!(
            "cd {0}\nmkdir d\nput {0}/local d/x\nrename d/x d/y\nget d/y {0}/z\nrm d/y\nrmdir d\n",
            agent.folder.path().display()
        ),
    );
    let mut command = agent.command("sftp");
    command.arg("-b").arg(batch).arg("web-1");
    stdout(&run(command).await);
    assert!(std::fs::read(agent.folder.path().join("z")).unwrap() == content);
}

#[tokio::test]
async fn rsync_and_git_work() {
    let agent = Agent::start().await;
    let folder = agent.folder.path();
    let source = folder.join("source");
    std::fs::create_dir(&source).unwrap();
    for n in 0..200 {
        std::fs::write(source.join(format!("f{n}")), noise(n * 37)).unwrap();
    }
    let shell = format!("ssh {}", agent.options().join(" "));
    for _ in 0..2 {
        let mut command = tokio::process::Command::new("rsync");
        command
            .args(["-a", "--checksum", "-e", &shell])
            .arg(format!("{}/", source.display()))
            .arg(format!("web-1:{}/copy/", folder.display()))
            .kill_on_drop(true);
        stdout(&run(command).await);
    }
    let mut command = tokio::process::Command::new("diff");
    command.arg("-r").arg(&source).arg(folder.join("copy"));
    stdout(&run(command).await);

    let git = |arguments: &[&str]| {
        let mut command = tokio::process::Command::new("git");
        command
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(["-c", "safe.directory=*", "-c", "init.defaultBranch=main"])
            .args(arguments)
            .env("GIT_SSH_COMMAND", &shell)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .current_dir(&source)
            .kill_on_drop(true);
        command
    };
    stdout(&run(git(&["init", "-q"])).await);
    stdout(&run(git(&["add", "."])).await);
    stdout(&run(git(&["commit", "-qm", "files"])).await);
    stdout(&run(git(&["init", "-q", "--bare", "../bare"])).await);
    let url = format!("web-1:{}/bare", folder.display());
    stdout(&run(git(&["push", "-q", &url, "HEAD:main"])).await);
    stdout(&run(git(&["clone", "-q", "-b", "main", &url, "../clone"])).await);
    assert!(folder.join("clone/f199").exists());
}
