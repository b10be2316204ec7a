//! A real sshd of our own on loopback: its keys, its configuration and who may come in lie in a folder; no file of the
//! system is touched, and it ends with the test, also when it panics.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whether sshd and ssh are there. In CI their absence is a failure.
pub fn is_installed(test: &str) -> bool {
    let found = program().is_some() && Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_ok();
    assert!(found || std::env::var_os("CI").is_none(), "{test} needs sshd and ssh, and CI has to have them");
    if !found {
        eprintln!("{test}: SKIPPED, there is no sshd (packages openssh-server, openssh-client)");
    }
    found
}

/// sshd wants to be called by its whole path.
fn program() -> Option<PathBuf> {
    ["/usr/sbin/sshd", "/usr/bin/sshd", "/sbin/sshd"].into_iter().map(PathBuf::from).find(|path| path.exists())
}

/// The daemon, and what a client needs to come in as `dr1` and `dr1.example`.
pub struct Sshd {
    child: Child,
    folder: PathBuf,
    pub port: u16,
    /// Who may come in: the user that runs the test.
    pub user: String,
    /// The client's key.
    pub key: PathBuf,
    /// `ssh -F …`: knows the host, its port and the key.
    pub shell: String,
}

impl Sshd {
    /// Starts one below `folder` whose sessions find programs in `path` and have this environment as well.
    pub fn start(folder: &Path, path: &Path, environment: &str) -> Sshd {
        let folder = folder.join("sshd");
        fs::create_dir(&folder).expect("a folder");
        // Where sshd runs as root it locks itself into this one, which a service's start would have made.
        if nix::unistd::geteuid().is_root() {
            fs::create_dir_all("/run/sshd").expect("the folder of privilege separation");
        }
        let (host_key, key) = (folder.join("host"), folder.join("key"));
        for file in [&host_key, &key] {
            let words = ["-q", "-t", "ed25519", "-N", "", "-f"];
            let status = Command::new("ssh-keygen").args(words).arg(file).status().expect("ssh-keygen runs");
            assert!(status.success());
        }
        let port = free_port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             PermitRootLogin prohibit-password\nPidFile none\nSetEnv PATH={}:/usr/bin:/bin {environment}\n",
            host_key.display(),
            folder.join("authorized_keys").display(),
            path.display()
        );
        fs::write(folder.join("sshd_config"), config).expect("a configuration");
        let public = fs::read_to_string(host_key.with_extension("pub")).expect("the host's key");
        fs::write(folder.join("known_hosts"), format!("dr1 {public}")).expect("the known host");
        let client = format!(
            "Host dr1 dr1.example\n HostName 127.0.0.1\n Port {port}\n HostKeyAlias dr1\n IdentityFile {}\nHost *\n IdentitiesOnly yes\n \
             BatchMode yes\n StrictHostKeyChecking yes\n UserKnownHostsFile {}\n",
            key.display(),
            folder.join("known_hosts").display()
        );
        fs::write(folder.join("ssh_config"), client).expect("a configuration");
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("the user").expect("a user with a name").name;
        let shell = format!("ssh -F {}", folder.join("ssh_config").display());
        let log = fs::File::create(folder.join("log")).expect("a log");
        let mut command = Command::new(program().expect("sshd is installed"));
        command.arg("-D").arg("-e").arg("-f").arg(folder.join("sshd_config")).stdin(Stdio::null()).stderr(log);
        let mut sshd = Sshd { child: command.spawn().expect("sshd starts"), folder, port, user, key, shell };
        sshd.allow("");
        let until = Instant::now() + Duration::from_secs(120);
        while !sshd.log().contains("Server listening") {
            let gone = sshd.child.try_wait().expect("sshd");
            assert!(gone.is_none() && Instant::now() < until, "sshd does not listen: {}", sshd.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        sshd
    }

    /// The public key, as `authorized_keys` has it.
    pub fn public(&self) -> String {
        fs::read_to_string(self.key.with_extension("pub")).expect("the client's key").trim().to_owned()
    }

    /// Lets the key in, with these words in front of it.
    pub fn allow(&self, options: &str) {
        self.authorize(&format!("{options} {}", self.public()));
    }

    /// Lets in who this line says.
    pub fn authorize(&self, line: &str) {
        fs::write(self.folder.join("authorized_keys"), format!("{}\n", line.trim())).expect("the authorized keys");
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).expect("the log")
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("sshd said:\n{}", self.log());
        }
    }
}

/// A port that nobody has at the moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}
