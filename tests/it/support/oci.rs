//! Images of other tools: made by those tools, kept in a registry of the test's own, or written by hand with something
//! wrong about them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::{FABER, Server};

/// A directory of a test's own with a store in it.
pub struct Trial {
    dir: TempDir,
}

impl Trial {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(FABER);
        command
            .current_dir(self.dir.path())
            .env("FABER_DATA_DIR", self.path("data"))
            .env("DOCKER_CONFIG", self.dir.path());
        command.env("SSL_CERT_FILE", self.path("cert.pem")).stdin(Stdio::null()).args(args);
        command
    }

    pub fn faber(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// `faber image import`, which must succeed; what it prints.
    #[track_caller]
    pub fn import(&self, args: &[&str]) -> Value {
        let output = self.faber(&[&["image", "import", "--json"], args].concat());
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The same, which must fail; what it says.
    #[track_caller]
    pub fn refused(&self, args: &[&str]) -> String {
        let output = self.faber(&[&["image", "import"], args].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Where the store has the image.
    pub fn tree(&self, image: &str) -> PathBuf {
        let told: Value = serde_json::from_slice(&fs::read(self.path("data/images").join(image)).unwrap()).unwrap();
        self.path("data/store/trees").join(told["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap())
    }

    /// Nothing of an image that was refused: no name, no tree, no file.
    #[track_caller]
    pub fn assert_empty(&self) {
        for name in ["images", "store/trees", "store/files", "store/staging"] {
            let left: Vec<PathBuf> = files(&self.path("data").join(name));
            assert!(left.is_empty(), "{left:?}");
        }
    }

    pub fn server(&self) -> Server {
        let data_dir = self.path("data");
        let env = [("FABER_DATA_DIR", data_dir.to_str().unwrap()), ("FABER_RATE_LIMIT__ENABLED", "false")];
        Server::start(&["--open-mode"], &env)
    }

    /// What a shell script of other tools prints. They keep things in places of their own: here those are empty, and go.
    #[track_caller]
    pub fn tools(&self, script: &str) -> String {
        let private = "for d in /var/lib /run /dev/shm; do mount -t tmpfs tmpfs $d; done; cd \"$1\"; export TMPDIR=$PWD HOME=$PWD";
        let stores =
            "store() { tool=$1; shift; $tool --root $PWD/$tool --runroot $PWD/$tool-run --storage-driver vfs \"$@\"; }";
        let output = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "bash",
                "-euc",
                &format!("{private}\n{stores}\n{script}"),
                "bash",
            ])
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Every file below a directory.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| if entry.file_type().unwrap().is_dir() { files(&entry.path()) } else { vec![entry.path()] })
        .collect()
}

/// This machine's architecture, as images have it.
pub fn architecture() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" }
}

/// Debian's docker-registry on a port of the kernel's choice.
pub struct Registry {
    process: Child,
    pub address: String,
}

impl Registry {
    /// With its blobs in `trial`; `more` is added to its configuration.
    pub fn start(trial: &Trial, more: &str) -> Self {
        let config = trial.path("registry.yml");
        let blobs = trial.path("registry");
        fs::write(
            &config,
            format!(
                "version: 0.1\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\n{}\n",
                blobs.display(),
                if more.contains("http: {") {
                    more.to_owned()
                } else {
                    format!("http: {{ addr: \"127.0.0.1:0\" }}\n{more}")
                },
            ),
        )
        .unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("listening on ")).expect("the registry listens");
        let address = line.split("listening on ").nth(1).unwrap().split(['"', ',']).next().unwrap().to_owned();
        // It must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, address }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An OCI layout written by hand, to be made wrong.
pub struct Layout {
    pub dir: PathBuf,
    pub config: Value,
    pub manifest: Value,
}

impl Layout {
    /// A right one, with these layers.
    pub fn new(dir: PathBuf, layers: &[&[u8]]) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let mut layout = Self { dir, config, manifest: json!({}) };
        let layers: Vec<Value> =
            layers.iter().map(|layer| layout.blob("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        layout.manifest = json!({ "schemaVersion": 2, "layers": layers });
        layout
    }

    pub fn blob(&self, kind: &str, content: &[u8]) -> Value {
        fs::write(self.blob_path(&digest(content)), content).unwrap();
        json!({ "mediaType": kind, "digest": digest(content), "size": content.len() })
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replacen(':', "/", 1))
    }

    /// Writes config, manifest and index as they are now.
    pub fn write(&mut self) -> PathBuf {
        let config = self.blob("application/vnd.oci.image.config.v1+json", self.config.to_string().as_bytes());
        if self.manifest["config"].is_null() {
            self.manifest["config"] = config;
        }
        let manifest = self.blob("application/vnd.oci.image.manifest.v1+json", self.manifest.to_string().as_bytes());
        self.index(json!([manifest]));
        self.dir.clone()
    }

    pub fn index(&self, manifests: Value) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }
}

pub fn digest(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}
