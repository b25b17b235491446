//! The store from several threads and as a process that died left it.

use super::*;
use crate::task::Digest;
use sha2::{Digest as _, Sha256};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

fn image(name: &str) -> Image {
    use crate::image::{Contents, Root};
    let digest = Digest::new(Sha256::digest(name).into());
    let contents =
        Contents { definition: digest.clone(), size: 0, versions: Default::default(), packages: Default::default() };
    Image { name: ImageName::parse(name).unwrap(), digest, root: Root::Tree(contents), ..Image::host() }
}

fn make(writer: &Writer<'_>, name: &str) -> Image {
    let made = writer.make::<StoreError>(&|_| {}, |place| {
        fs::write(place.tree.join("file"), name).unwrap();
        Ok((image(name), None))
    });
    made.unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(&dir.path().join("data"));
    (dir, store)
}

/// Whoever has a tree has all of it, however often its name comes and goes meanwhile.
#[test]
fn a_tree_that_is_held_is_never_removed() {
    let (_dir, store) = store();
    let digest = image("one").digest;
    let done = AtomicBool::new(false);
    let held = std::thread::scope(|scope| {
        let holder = scope.spawn(|| {
            let mut held = 0;
            while !done.load(Relaxed) {
                let Ok(tree) = store.hold(&digest) else { continue };
                for _ in 0..20 {
                    assert_eq!(fs::read_to_string(tree.rootfs.join("file")).expect("held, and there"), "one");
                }
                held += 1;
            }
            held
        });
        let writer = store.write().unwrap();
        for _ in 0..60 {
            make(&writer, "one");
            while let Err(error) = writer.remove(&image("one").name) {
                assert!(matches!(error, StoreError::InUse(_)), "{error:?}");
            }
            writer.collect().unwrap();
        }
        done.store(true, Relaxed);
        holder.join().unwrap()
    });
    assert!(held > 0);
    assert_eq!(fs::read_dir(store.staging()).unwrap().count(), 0);
}

#[test]
fn what_is_in_use_keeps_name_and_files() {
    let (_dir, store) = store();
    let writer = store.write().unwrap();
    make(&writer, "one");
    let held = store.hold(&image("one").digest).unwrap();
    assert!(matches!(writer.remove(&held.image.name), Err(StoreError::InUse(_))));
    assert!(store.image(&held.image.name).is_ok(), "a name that could not go is there");
    // Made once more while it is used: what is used stays where it is.
    let before = fs::metadata(&held.rootfs).unwrap().ino();
    make(&writer, "one");
    assert_eq!(fs::metadata(&held.rootfs).unwrap().ino(), before);
    fs::remove_file(store.names().join("one")).unwrap();
    writer.collect().unwrap();
    assert!(held.rootfs.join("file").exists());
    drop(held);
    writer.collect().unwrap();
    assert_eq!(fs::read_dir(store.trees()).unwrap().count(), 0);
}

#[test]
fn a_name_that_cannot_be_read_keeps_every_tree() {
    let (_dir, store) = store();
    let writer = store.write().unwrap();
    make(&writer, "one");
    make(&writer, "two");
    fs::write(store.names().join("one"), "{").unwrap();
    assert!(matches!(writer.collect(), Err(StoreError::Json { .. })));
    assert_eq!(fs::read_dir(store.trees()).unwrap().count(), 2);
    assert_eq!(store.images().unwrap().len(), 1);
    writer.remove(&image("one").name).unwrap();
    writer.collect().unwrap();
    assert_eq!(fs::read_dir(store.trees()).unwrap().count(), 1);
}
