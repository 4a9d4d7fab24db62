//! The real programs: built once, found beside this one.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Where the programs under test are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The folder that holds them all.
    pub folder: PathBuf,
    /// `postern`.
    pub client: PathBuf,
    /// `postern-agent`.
    pub agent: PathBuf,
    /// `lab`: profiles name it as their `mfa_process`.
    pub lab: PathBuf,
}

impl Programs {
    /// Builds `postern` and `postern-agent` when cargo started us: `cargo lab` builds the lab
    /// alone. Tests do without: `tests/run` has built them.
    pub fn build() -> Result<()> {
        match std::env::var_os("CARGO") {
            Some(cargo) => build(&cargo.into()),
            None => Ok(()),
        }
    }

    /// Finds them beside us.
    pub fn find() -> Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        // A test binary lies in `deps` below the folder of the programs.
        let folder = own
            .ancestors()
            .skip(1)
            .take(2)
            .find(|folder| folder.join("postern").is_file())
            .with_context(|| {
                format!(
                    "`postern` is not beside {}\n\
                     hint: cargo build --release --workspace --bins",
                    own.display()
                )
            })?
            .to_owned();
        let program = |name: &str| {
            let path = folder.join(name);
            ensure!(
                path.is_file(),
                "{} is missing\nhint: cargo build --release --workspace --bins",
                path.display()
            );
            Ok(path)
        };
        Ok(Self {
            client: program("postern")?,
            agent: program("postern-agent")?,
            lab: program("lab")?,
            folder,
        })
    }
}

/// The whole workspace, so that features are those of the build that made this program and
/// nothing is built twice.
fn build(cargo: &PathBuf) -> Result<()> {
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--workspace", "--bins"])
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", cargo.display()))?;
    ensure!(
        status.success(),
        "building `postern` and `postern-agent` failed"
    );
    Ok(())
}
