//! Images of other tools: umoci, buildah, skopeo and podman make them, Debian's registry keeps them, tasks run in them; and
//! podman runs what is exported.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::oci::{Layout, Registry, Trial, architecture, files};
use crate::support::{Server, eventually};

/// A root file system of busybox, in root.
const ROOT: &str = r#"
mkdir -p root/bin root/etc root/app root/usr/lib root/gone root/kept
install -m 755 /bin/busybox root/bin/busybox
for name in sh id pwd env cat ls touch stat echo sleep test; do ln -s busybox root/bin/$name; done
ln -s usr/lib root/lib
printf 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/app:/bin/sh\n' > root/etc/passwd
printf 'root:x:0:\napp:x:1000:\n' > root/etc/group
echo a > root/gone/a; echo b > root/kept/b; echo c > root/kept/c
"#;
/// An image of it in the layout oci, with a second layer: umoci's.
const UMOCI: &str = r#"
umoci init --layout oci; umoci new --image oci:one
tar -C root --owner=0 --group=0 -cf one.tar .
umoci raw add-layer --image oci:one one.tar
mkdir -p two/kept two/lib; touch two/.wh.gone two/kept/.wh.b; echo lib > two/lib/x
tar -C two --owner=0 --group=0 -cf two.tar .wh.gone kept/.wh.b lib/x
umoci raw add-layer --image oci:one two.tar
umoci config --image oci:one --config.user app --config.workingdir /app --config.env A=b --config.env PATH=/bin
"#;

fn umoci() -> Trial {
    let trial = Trial::new();
    trial.tools(&format!("{ROOT}{UMOCI}"));
    trial
}

/// What a shell in an image prints.
#[track_caller]
fn shell(server: &Server, image: &str, script: &str) -> String {
    let files = json!({ "from/client": "hello" });
    let result = server.run(json!({ "command": "sh", "args": ["-c", script], "image": image, "files": files }));
    assert_eq!(result["status"], "Success", "{result}");
    result["stdout"].as_str().unwrap_or_default().trim().to_owned()
}

#[test]
fn tasks_have_an_images_layers_env_workdir_and_user() {
    let trial = umoci();
    let told = trial.import(&["oci", "--name", "one"]);
    assert_eq!((&told["outcome"], &told["notes"]), (&json!("imported"), &json!([])), "{told}");
    assert_eq!((&told["workdir"], &told["user"]), (&json!("/app"), &json!([1000, 1000])));
    assert_eq!(trial.import(&["oci", "--name", "one"])["outcome"], "unchanged");
    let listed: Value = serde_json::from_slice(&trial.faber(&["image", "list", "--json"]).stdout).unwrap();
    assert_eq!((&listed[1]["name"], &listed[1]["description"]), (&json!("one"), &json!("imported from oci")));

    let server = trial.server();
    let sh = |script: &str| shell(&server, "one", script);
    assert_eq!(sh("id; pwd; echo $A $PATH $HOME"), "uid=1000(app) gid=1000(app)\n/app\nb /bin /workspace");
    assert_eq!(
        sh(
            "cat /workspace/from/client; touch /workspace/x && stat -c %u:%g:%a /workspace /workspace/x /workspace/from/client"
        ),
        "hello1000:1000:755\n1000:1000:644\n1000:1000:755"
    );
    // The second layer: what it took away, and what it brought through a link of the first.
    assert_eq!(
        sh("ls /kept /usr/lib; test -e /gone || echo gone; ls -d /lib"),
        "/kept:\nc\n\n/usr/lib:\nx\ngone\n/lib"
    );
    assert_eq!(sh("for d in / /app /etc /usr/lib; do touch $d/x 2>/dev/null && echo wrote; done; echo no"), "no");
    let status = sh("cat /proc/self/status");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!([field("CapEff:"), field("CapBnd:"), field("Groups:")], ["0000000000000000", "0000000000000000", ""]);
    assert_eq!([field("Uid:"), field("NoNewPrivs:"), field("Seccomp:")], ["1000\t1000\t1000\t1000", "1", "2"]);
    // Neither the init nor other slots are this user's.
    assert_eq!(sh("kill -9 1 2>/dev/null || echo refused"), "refused");
    assert_eq!(server.shell("id -u; pwd"), "65000\n/workspace", "the host image is as it was");
    // Output can be opened by name, so the pipes are the user's too.
    assert_eq!(sh("echo out > /dev/stdout; echo env > /dev/stderr"), "out");
}

#[test]
fn users_and_directories_that_cannot_be_are_told() {
    let trial = umoci();
    let config = |user: &str, workdir: &str| {
        trial.tools(&format!("umoci config --image oci:one --config.user '{user}' --config.workingdir '{workdir}'"));
        trial.import(&["oci", "--name", "one"])
    };
    let notes = |told: &Value| {
        told["notes"].as_array().unwrap().iter().map(|note| note.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let faber = json!([65000, 65000]);
    let root = config("root", "/made/here");
    assert_eq!((&root["user"], &root["workdir"], notes(&root)), (&faber, &json!("/made/here"), vec![]));
    let absent = config("absent", "/tmp");
    assert_eq!((&absent["user"], &absent["workdir"]), (&faber, &json!("/tmp")));
    assert_eq!(notes(&absent), ["USER \"absent\" is not in the image's /etc/passwd: tasks run as Faber's own user"]);
    let file = config("7:8", "/bin/busybox");
    assert_eq!((&file["user"], &file["workdir"]), (&json!([7, 8]), &json!("/workspace")));
    assert_eq!(
        notes(&file),
        ["WORKDIR \"/bin/busybox\" is nothing that the task's user can enter: tasks start in /workspace"]
    );
    let server = trial.server();
    assert_eq!(shell(&server, "one", "id -u; id -g; pwd; cat from/client"), "7\n8\n/workspace\nhello");
    let chosen = trial.import(&["oci", "--name", "two", "--workdir", "/usr/lib"]);
    assert_eq!(chosen["workdir"], "/usr/lib");
    assert_eq!(shell(&server, "two", "pwd; cat x"), "/usr/lib\nlib");
}

#[test]
fn a_directory_that_only_root_may_enter_is_no_workdir() {
    let trial = Trial::new();
    trial.tools(&format!("{ROOT}\nmkdir -m 700 root/root\n{UMOCI}\numoci config --image oci:one --config.user root --config.workingdir /root"));
    let told = trial.import(&["oci", "--name", "one"]);
    assert_eq!(told["workdir"], "/workspace", "{told}");
    assert_eq!(shell(&trial.server(), "one", "pwd; id -u"), "/workspace\n65000");
}

#[test]
fn images_come_from_a_registry() {
    let trial = umoci();
    let registry = Registry::start(&trial, "");
    let address = registry.address.clone();
    let push = format!("skopeo copy -q --dest-tls-verify=false oci:oci:one docker://{address}");
    trial.tools(&format!("{push}/team/tool:1.0; {push}/team/docker:1.0 --format v2s2"));
    let reference = format!("{address}/team/tool:1.0");
    let told = trial.import(&[&reference]);
    assert_eq!(
        (&told["name"], &told["outcome"], &told["user"]),
        (&json!("tool"), &json!("imported"), &json!([1000, 1000]))
    );
    assert_eq!(trial.import(&[&reference])["outcome"], "unchanged");
    trial.import(&[&format!("{address}/team/docker:1.0")]);
    let digest =
        trial.tools(&format!("skopeo inspect --tls-verify=false --format '{{{{.Digest}}}}' docker://{reference}"));
    assert_eq!(
        trial.import(&["--name", "pinned", &format!("{address}/team/tool@{}", digest.trim())])["outcome"],
        "imported"
    );
    let server = trial.server();
    for image in ["tool", "docker", "pinned"] {
        assert_eq!(shell(&server, image, "id -un; pwd; ls /kept"), "app\n/app\nc", "{image}");
    }
    let absent = trial.refused(&[&format!("{address}/team/none:1.0")]);
    assert!(absent.contains("team/none:1.0") && absent.contains("manifest unknown"), "{absent}");
    drop(registry);
    let gone = trial.refused(&[&reference, "--name", "again"]);
    assert!(gone.contains(&reference) && gone.contains("Connection refused"), "{gone}");
}

#[test]
fn of_a_multi_arch_image_this_machines_is_taken() {
    let trial = Trial::new();
    let registry = Registry::start(&trial, "");
    let address = registry.address.clone();
    let script = r#"
image() {
    container=$(store buildah from --arch $1 scratch)
    echo $1 > root/arch
    store buildah copy -q $container root / > /dev/null
    store buildah config --arch $1 --env PATH=/bin $container
    store buildah commit -q --format $2 $container $1 > /dev/null
    store buildah manifest add $3 $1 > /dev/null
}
list() {
    store buildah manifest create $1 > /dev/null
    for arch in $3; do image $arch $2 $1; done
    store buildah manifest push --all --format $4 --tls-verify=false $1 docker://ADDRESS/$1:1 > /dev/null
}
"#;
    let lists = format!(
        "list oci oci 's390x {0}' oci; list docker docker '{0} s390x' v2s2; list other oci 's390x ppc64le' oci",
        architecture()
    );
    trial.tools(&format!("{ROOT}{script}{lists}").replace("ADDRESS", &address));
    let refused = trial.refused(&[&format!("{address}/other:1")]);
    let expected = format!("there is no image for linux/{}; there is linux/s390x, linux/ppc64le\n", architecture());
    assert!(refused.ends_with(&expected), "{refused}");
    trial.import(&[&format!("{address}/oci:1")]);
    trial.import(&[&format!("{address}/docker:1")]);
    let server = trial.server();
    assert_eq!([shell(&server, "oci", "cat /arch"), shell(&server, "docker", "cat /arch")], [architecture(); 2]);
}

#[test]
fn archives_of_every_tool_are_read() {
    let trial = umoci();
    trial.tools(
        r#"
skopeo copy -q oci:oci:one docker-archive:saved.tar:team/saved:1
skopeo copy -q oci:oci:one oci-archive:archive.tar:1
skopeo copy -q --dest-compress-format zstd --dest-compress-level 3 oci:oci:one oci:zstd:1
store podman load -q -i saved.tar > /dev/null
store podman save -q --format docker-archive -o podman.tar team/saved:1
store podman save -q --format oci-archive -o podman-oci.tar team/saved:1
gzip -k podman.tar; rm podman.tar
umoci tag --image oci:one two
"#,
    );
    let manifest = files(&trial.path("zstd"))
        .into_iter()
        .find_map(|path| fs::read_to_string(path).ok().filter(|text| text.contains("tar+zstd")));
    assert!(manifest.is_some(), "layers are packed with zstd");
    let two = trial.refused(&["oci", "--name", "x", "--tag", "three"]);
    assert!(two.contains("with the tag three; there is one, two"), "{two}");
    trial.tools("umoci config --image oci:two --config.workingdir /bin");
    let several = trial.refused(&["oci", "--name", "x"]);
    assert!(several.ends_with("there is more than one image: one, two; --tag chooses one\n"), "{several}");
    trial.import(&["oci", "--tag", "two"]);
    for source in ["saved.tar", "archive.tar", "zstd", "podman.tar.gz", "podman-oci.tar"] {
        trial.import(&[source]);
    }
    let server = trial.server();
    for image in ["saved", "archive", "zstd", "podman", "podman-oci"] {
        assert_eq!(shell(&server, image, "id -un; pwd; ls /kept; cat /lib/x"), "app\n/app\nc\nlib", "{image}");
    }
    assert_eq!(shell(&server, "oci", "pwd"), "/bin");
}

/// Of `secret`, as htpasswd(1) has it.
const HTPASSWD: &str = "user:$2b$05$qsYhYc4iBZEZxIa7qvjHXu/Xk.9.xbuSoFVj0WrL/VvaYOaM1XEZO\n";

/// A certificate for 127.0.0.1, and its key.
const CERTIFICATE: &str = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=faber \
    -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE 2>/dev/null";

#[test]
fn registries_with_certificates_and_passwords_are_read() {
    let trial = umoci();
    let open = Registry::start(&trial, "");
    trial.tools(&format!(
        "skopeo copy -q --dest-tls-verify=false oci:oci:one docker://{}/tool:1; {CERTIFICATE}",
        open.address
    ));
    drop(open);
    fs::write(trial.path("htpasswd"), HTPASSWD).unwrap();
    let path = |name: &str| trial.path(name).display().to_string();
    let registry = Registry::start(
        &trial,
        &format!(
            "http: {{ addr: \"127.0.0.1:0\", tls: {{ certificate: {}, key: {} }} }}\nauth: {{ htpasswd: {{ realm: x, path: {} }} }}",
            path("cert.pem"),
            path("key.pem"),
            path("htpasswd"),
        ),
    );
    let reference = format!("{}/tool:1", registry.address);
    let anonymous = trial.refused(&[&reference]);
    assert!(
        anonymous.contains("Not authorized")
            || anonymous.contains("UNAUTHORIZED")
            || anonymous.contains("authentication required"),
        "{anonymous}"
    );
    let login = |password: &str| {
        let mut command = trial.command(&[
            "image",
            "import",
            &reference,
            "--name",
            "given",
            "--username",
            "user",
            "--password-stdin",
        ]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!String::from_utf8_lossy(&output.stderr).contains(password.trim()), "{output:?}");
        output.status.success()
    };
    assert_eq!([login("wrong\n"), login("secret\n")], [false, true]);
    // As `docker login` keeps it: user:secret.
    let kept = json!({ "auths": { &registry.address: { "auth": "dXNlcjpzZWNyZXQ=" } } });
    fs::write(trial.path("config.json"), kept.to_string()).unwrap();
    trial.import(&[&reference, "--name", "kept"]);
    // A certificate that nobody vouches for.
    fs::write(trial.path("cert.pem"), "").unwrap();
    let unknown = trial.refused(&[&reference, "--name", "unknown"]);
    assert!(unknown.contains("invalid peer certificate"), "{unknown}");
    let mut plain = trial.command(&[
        "image",
        "import",
        "192.0.2.1:5000/x",
        "--plain-http",
        "--username",
        "user",
        "--password-stdin",
    ]);
    let mut plain = plain.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    plain.stdin.take().unwrap().write_all(b"secret").unwrap();
    let plain = plain.wait_with_output().unwrap();
    let said = String::from_utf8(plain.stderr).unwrap();
    assert!(said.ends_with("beyond loopback no password goes over plain HTTP\n"), "{said}");
}

/// Signs what is in token.json for the registry (distribution, docs/spec/auth/jwt.md).
const TOKEN: &str = r#"
url() { basenc --base64url -w0 | tr -d =; }
der=$(openssl x509 -in cert.pem -outform DER | base64 -w0)
head=$(printf '{"typ":"JWT","alg":"RS256","x5c":["%s"]}' $der | url)
body=$(cat token.json | url)
printf '%s.%s.%s' $head $body $(printf '%s.%s' $head $body | openssl dgst -sha256 -sign key.pem -binary | url)
"#;

#[test]
fn a_registry_that_wants_tokens_gets_them() {
    let trial = umoci();
    let open = Registry::start(&trial, "");
    trial.tools(&format!(
        "skopeo copy -q --dest-tls-verify=false oci:oci:one docker://{}/tool:1; {CERTIFICATE}",
        open.address
    ));
    drop(open);
    let issuer = TcpListener::bind("127.0.0.1:0").unwrap();
    let realm = format!("http://{}/token", issuer.local_addr().unwrap());
    let registry = Registry::start(
        &trial,
        &format!(
            "auth: {{ token: {{ realm: \"{realm}\", service: tests, issuer: faber, rootcertbundle: {} }} }}",
            trial.path("cert.pem").display(),
        ),
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "iss": "faber", "sub": "", "aud": "tests", "exp": now + 600, "nbf": now - 60, "iat": now - 60, "jti": "1",
        "access": [{ "type": "repository", "name": "tool", "actions": ["pull"] }],
    });
    fs::write(trial.path("token.json"), claims.to_string()).unwrap();
    let token = trial.tools(TOKEN);
    let answers = std::thread::spawn(move || {
        let (mut connection, _) = issuer.accept().unwrap();
        let mut request = [0; 4096];
        let length = connection.read(&mut request).unwrap();
        let body = json!({ "token": token }).to_string();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        connection.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&request[..length]).lines().next().unwrap().to_owned()
    });
    trial.import(&[&format!("{}/tool:1", registry.address)]);
    let asked = answers.join().unwrap();
    assert!(asked.contains("repository%3Atool%3Apull") && asked.contains("service=tests"), "{asked}");
}

#[test]
fn an_interrupted_import_leaves_nothing() {
    let trial = Trial::new();
    // A registry that takes requests and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let reference = format!("{}/slow:1", silent.local_addr().unwrap());
    let mut import =
        trial.command(&["image", "import", "--plain-http", &reference]).stderr(Stdio::piped()).spawn().unwrap();
    let (connection, _) = silent.accept().unwrap();
    kill(Pid::from_raw(import.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(import.wait().unwrap().code(), Some(130));
    drop(connection);
    // And in the middle of a layer, whose one file takes its time.
    let mut header = tar::Header::new_gnu();
    header.set_path("large").unwrap();
    header.set_size(30 << 30);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let mut layout = Layout::new(trial.path("slow"), &[header.as_bytes()]);
    layout.manifest["layers"][0]["size"] = json!(1u64 << 40);
    layout.write();
    let blob = layout.blob_path(layout.manifest["layers"][0]["digest"].as_str().unwrap());
    fs::File::options().write(true).open(&blob).unwrap().set_len(1 << 40).unwrap();
    let mut import = trial.command(&["image", "import", "slow"]).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the layer is read", || {
        trial.path("data/store/staging").read_dir().is_ok_and(|mut entries| entries.next().is_some())
    });
    std::thread::sleep(Duration::from_millis(200));
    kill(Pid::from_raw(import.id() as i32), Signal::SIGTERM).unwrap();
    let mut said = String::new();
    import.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(import.wait().unwrap().code(), Some(130), "{said}");
    assert_eq!(said, "faber: interrupted: nothing was imported\n");
    trial.assert_empty();
}

#[test]
fn podman_runs_what_is_exported() {
    let trial = umoci();
    trial.import(&["oci", "--name", "one"]);
    let export = |file: &str| {
        let output = trial.faber(&["image", "export", "one", file]);
        assert!(output.status.success(), "{output:?}");
        fs::read(trial.path(file)).unwrap()
    };
    assert!(export("one.tar") == export("again.tar"), "the same image is the same bytes");
    let group = format!("/faber-test-{}", std::process::id());
    let script = r#"
store podman load -q -i one.tar
store podman --runtime runc --cgroup-manager cgroupfs run --rm --cgroup-parent GROUP --network none \
    --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 localhost/one \
    sh -c 'id -u; pwd; echo $A $PATH; ls /kept; cat /lib/x; touch /tmp/x /workspace/x && echo wrote'
for dir in $(find /sys/fs/cgroup -depth -type d -path "*GROUP*"); do rmdir $dir; done
skopeo inspect --config oci-archive:one.tar
"#;
    let said = trial.tools(&script.replace("GROUP", &group));
    let (ran, config) = said.split_once('{').unwrap();
    assert_eq!(ran, "Loaded image: localhost/one:latest\n1000\n/app\nb /bin\nc\nlib\nwrote\n");
    let config: Value = serde_json::from_str(&format!("{{{config}")).unwrap();
    assert_eq!(
        (&config["architecture"], &config["config"]["User"]),
        (&json!(architecture()), &json!("1000:1000")),
        "{config}"
    );
    // And back again.
    trial.import(&["one.tar", "--name", "back"]);
    assert_eq!(shell(&trial.server(), "back", "id -un; pwd; echo $A; ls /kept"), "app\n/app\nb\nc");
    let said = |args: &[&str]| String::from_utf8(trial.faber(&[&["image", "export"], args].concat()).stderr).unwrap();
    assert_eq!(
        said(&["host", "x.tar"]),
        "faber: the image host is this machine's own files: there is nothing to export\n"
    );
    assert_eq!(said(&["none", "x.tar"]), "faber: there is no image none in the store\n");
    assert!(said(&["one", "nowhere/x.tar"]).contains("create a file in nowhere"));
    assert!(!trial.path("x.tar").exists());
}

/// A definition may start from an image of another tool, which its lock pins.
#[test]
fn an_image_of_another_tool_is_a_base() {
    let trial = umoci();
    let directory = trial.path("images/kid");
    fs::create_dir_all(&directory).unwrap();
    fs::rename(trial.path("oci"), directory.join("oci")).unwrap();
    let definition = r#"
name = "kid"
description = ""
base = "oci:oci"
run = ["id -u > /etc/who; cat /kept/c >> /etc/who"]
path = "/bin"
workdir = "/app"
user = [1000, 1000]
[[test]]
name = "a"
command = ["sh", "-c", "cat /etc/who; id -u; pwd"]
stdout = "0\nc\n1000\n/app\n"
"#;
    fs::write(directory.join("image.toml"), definition).unwrap();
    let built = trial.faber(&["image", "build", "kid"]);
    assert!(built.status.success(), "{built:?}");
    let tested = trial.faber(&["image", "test", "kid"]);
    assert!(tested.status.success(), "{tested:?}");
    let again = trial.faber(&["image", "build", "kid"]);
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("kid: unchanged"), "{again:?}");

    trial.tools("umoci config --image images/kid/oci:one --config.env A=c");
    let other = trial.faber(&["image", "build", "kid"]);
    let said = String::from_utf8_lossy(&other.stdout).into_owned();
    assert!(said.contains("the base oci is another one than image.lock has"), "{said}");
    assert!(trial.faber(&["image", "build", "--update", "kid"]).status.success());
}
