//! Eight images in turn beside one: what a mixed load costs.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Run;
use crate::common::support::Server;
use crate::common::{Client, SETTINGS};
use crate::transfer::in_turns;

const IMAGES: usize = 8;
const CLIENTS: usize = 8;

pub fn all(run: &mut Run) {
    run.begins("eight images in turn");
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..IMAGES).map(|index| format!("image{index}")).collect();
    for name in &names {
        let definition = dir.path().join("definitions").join(name);
        fs::create_dir_all(&definition).unwrap();
        fs::copy("/bin/busybox", definition.join("busybox")).expect("busybox-static is installed");
        let text = format!(
            "name = '{name}'\ndescription = ''\nbase = 'scratch'\ncopy = [{{ from = 'busybox', to = '/bin/true' }}, \
             {{ from = 'image.toml', to = '/etc/name' }}]\n"
        );
        fs::write(definition.join("image.toml"), text).unwrap();
    }
    let data_dir = dir.path().join("data");
    let mut build = Command::new(crate::common::support::FABER);
    build.env("FABER_DATA_DIR", &data_dir).args(["image", "build", "--definitions"]);
    let built = build.arg(dir.path().join("definitions")).arg("--all").output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let server = Server::start(&["--open-mode", "--data-dir", data_dir.to_str().unwrap()], &SETTINGS);
    let client = |name: &String| Client::new(&server, &json!({ "image": name, "command": "true" }));
    let clients: Vec<Client> = names.iter().map(client).collect();
    for _ in 0..8 {
        clients.iter().for_each(|client| _ = client.ask());
    }
    let turn = AtomicUsize::new(0);
    let pause = || std::thread::sleep(Duration::from_millis(15));
    let one = || {
        pause();
        clients[0].ask()
    };
    let next = || {
        pause();
        clients[turn.fetch_add(1, Ordering::Relaxed) % IMAGES].ask()
    };
    let [one, each] = in_turns(run.args.times(400, 4), [&one, &next]);

    let seconds = Duration::from_secs(run.args.times(8, 2) as u64);
    let rate = |images: usize| {
        let turn = AtomicUsize::new(0);
        let (until, asked) = (Instant::now() + seconds, AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    let own: Vec<Client> = names[..images].iter().map(client).collect();
                    while Instant::now() < until {
                        own[turn.fetch_add(1, Ordering::Relaxed) % images].ask();
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        asked.into_inner() as f64 / seconds.as_secs_f64()
    };
    let (all_alike, in_turn) = (rate(1), rate(IMAGES));
    run.tell(format!(
        "eight images in turn: {each:.2} ms beside {one:.2} of one; by 8 clients {in_turn:.0} requests/s beside {all_alike:.0}"
    ));
    let told = json!({ "one": one, "each": each, "rate_of_one": all_alike, "rate_in_turn": in_turn });
    run.raw.insert("eight images".into(), told);
    run.at_most("eight images in turn, p50: one image's", each / one, 1.25, 1.05, "x");
    run.at_least("eight images, 8 clients: one image's rate", in_turn / all_alike, 0.85, 0.97, "x");
}
