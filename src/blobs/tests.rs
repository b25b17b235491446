use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, utimensat};
use tempfile::TempDir;

use super::staged::StageAs;
use super::*;

const WIDE: Bounds = Bounds { each: 1 << 20, total: 4 << 20, per_owner: 2 << 20, lifetime: Duration::from_secs(3600) };

/// A directory with one instance, which writes uploads in one of the two ways.
struct Place {
    directory: TempDir,
    blobs: Arc<Blobs>,
}

impl Place {
    fn new(bounds: Bounds) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let blobs = open(directory.path(), bounds);
        Self { directory, blobs }
    }

    fn named(bounds: Bounds) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut blobs = Blobs::open(descriptor(directory.path()), bounds).unwrap();
        blobs.store.stage_as = StageAs::Named;
        Self { directory, blobs: Arc::new(blobs) }
    }

    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(path)
    }

    fn data(&self, bytes: &[u8]) -> PathBuf {
        let digest = digest(bytes);
        self.path("data").join(&digest.hex()[..2]).join(digest.hex())
    }

    fn mark(&self, owner: &str, bytes: &[u8]) -> PathBuf {
        self.path("owners").join(directory_name(owner)).join(digest(bytes).hex())
    }

    fn put(&self, owner: &str, bytes: &[u8]) -> Result<Stored, BlobError> {
        put(&self.blobs, owner, bytes)
    }

    fn has(&self, bytes: &[u8]) -> bool {
        read(&self.blobs, bytes).is_some()
    }

    /// Every file and link below the directory.
    fn files(&self) -> BTreeSet<PathBuf> {
        fn walk(directory: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in std::fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => walk(&entry.path(), found),
                    false => drop(found.insert(entry.path())),
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(self.directory.path(), &mut found);
        found
    }

    #[track_caller]
    fn is_empty(&self) {
        assert_eq!(self.files(), BTreeSet::new());
        assert_eq!(self.blobs.usage(), Usage::default());
        assert_eq!(*self.blobs.index(), Index::default());
    }

    /// What is in memory is what is on disk.
    #[track_caller]
    fn is_consistent(&self) {
        let again = open(self.directory.path(), self.blobs.bounds);
        assert_eq!(*again.index(), *self.blobs.index());
    }
}

fn both_ways() -> [Place; 2] {
    let places = [Place::new(WIDE), Place::named(WIDE)];
    assert_eq!(places[0].blobs.store.stage_as, StageAs::Unnamed, "the file system of the tests has O_TMPFILE");
    places
}

fn descriptor(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn open(path: &Path, bounds: Bounds) -> Arc<Blobs> {
    Arc::new(Blobs::open(descriptor(path), bounds).unwrap())
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

fn put(blobs: &Arc<Blobs>, owner: &str, bytes: &[u8]) -> Result<Stored, BlobError> {
    let mut upload = blobs.begin(owner, Some(bytes.len() as u64))?;
    bytes.chunks(7).try_for_each(|chunk| upload.write(chunk))?;
    upload.finish(Some(&digest(bytes)))
}

fn read(blobs: &Blobs, bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut file, size) = blobs.get(&digest(bytes)).unwrap()?;
    let mut found = Vec::new();
    file.read_to_end(&mut found).unwrap();
    assert_eq!(found.len() as u64, size);
    Some(found)
}

fn set_last_use(path: &Path, ago: Duration) {
    let since = (SystemTime::now() - ago).duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let at = Timespec { tv_sec: since.as_secs() as i64, tv_nsec: 0 };
    let times = Timestamps { last_access: at, last_modification: at };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

#[test]
fn what_was_put_is_read_back() {
    for place in both_ways() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let stored = place.put("ann", &bytes).unwrap();
        assert_eq!(stored, Stored { digest: digest(&bytes), size: 400_000, known: false });
        assert_eq!(read(&place.blobs, &bytes).unwrap(), bytes);
        assert_eq!(place.blobs.usage(), Usage { blobs: 1, bytes: 400_000, uploading: 0 });
        assert_eq!(place.files(), BTreeSet::from([place.data(&bytes), place.mark("ann", &bytes)]));
        place.is_consistent();
    }
}

#[test]
fn an_empty_blob_is_a_blob() {
    let place = Place::new(WIDE);
    place.put("ann", b"").unwrap();
    assert_eq!(read(&place.blobs, b"").unwrap(), b"");
    assert!(place.blobs.remove("ann", &digest(b"")).unwrap());
    place.is_empty();
}

#[test]
fn each_reader_has_a_position_of_its_own() {
    let place = Place::new(WIDE);
    place.put("ann", b"0123456789").unwrap();
    let (mut first, _) = place.blobs.get(&digest(b"0123456789")).unwrap().unwrap();
    let (mut second, _) = place.blobs.get(&digest(b"0123456789")).unwrap().unwrap();
    first.seek(SeekFrom::Start(7)).unwrap();
    let (mut end, mut range) = (String::new(), [0; 3]);
    first.read_to_string(&mut end).unwrap();
    second.read_exact(&mut range).unwrap();
    assert_eq!((end.as_str(), &range), ("789", b"012"));
    second.read_exact_at(&mut range, 4).unwrap();
    assert_eq!(&range, b"456");
}

#[test]
fn a_reader_cannot_write() {
    for place in both_ways() {
        place.put("ann", b"bytes").unwrap();
        let (file, _) = place.blobs.get(&digest(b"bytes")).unwrap().unwrap();
        assert!(file.write_at(b"other", 0).is_err());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o444);
    }
}

#[test]
fn directories_are_for_their_owner_only() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    let marks = format!("owners/{}", directory_name("ann"));
    for path in ["data", "data/00", "owners", "staging", &marks] {
        assert_eq!(std::fs::metadata(place.path(path)).unwrap().permissions().mode() & 0o777, 0o700, "{path}");
    }
}

#[test]
fn an_unknown_digest_is_none() {
    assert!(!Place::new(WIDE).has(b"never put"));
}

#[test]
fn the_second_put_is_known_and_costs_its_owner_only() {
    for place in both_ways() {
        assert!(!place.put("ann", b"bytes").unwrap().known);
        assert!(place.put("ann", b"bytes").unwrap().known);
        assert!(place.put("bob", b"bytes").unwrap().known);
        assert_eq!((place.blobs.usage_of("ann"), place.blobs.usage_of("bob")), (5, 5));
        assert_eq!(place.blobs.usage(), Usage { blobs: 1, bytes: 5, uploading: 0 });
        place.is_consistent();
    }
}

#[test]
fn a_mismatch_leaves_nothing() {
    for place in both_ways() {
        let mut upload = place.blobs.begin("ann", None).unwrap();
        upload.write(b"bytes").unwrap();
        let error = upload.finish(Some(&digest(b"other"))).unwrap_err();
        let BlobError::Mismatch { expected, found } = error else { panic!("{error}") };
        assert_eq!((expected, found), (digest(b"other"), digest(b"bytes")));
        place.is_empty();
    }
}

#[test]
fn a_dropped_upload_leaves_nothing() {
    for place in both_ways() {
        let mut upload = place.blobs.begin("ann", Some(5)).unwrap();
        upload.write(b"by").unwrap();
        assert_eq!((place.blobs.usage().uploading, place.blobs.usage_of("ann")), (2, 2));
        drop(upload);
        place.is_empty();
    }
}

#[test]
fn an_upload_can_be_held_by_any_thread() {
    fn check<T: Send + 'static>() {}
    check::<Upload>();
    check::<Arc<Blobs>>();
}

#[test]
fn one_blob_may_have_so_many_bytes_and_no_more() {
    let place = Place::new(Bounds { each: 10, ..WIDE });
    place.put("ann", &[1; 10]).unwrap();
    assert!(matches!(place.blobs.begin("ann", Some(11)), Err(BlobError::TooLarge { most: 10 })));
    let mut upload = place.blobs.begin("ann", None).unwrap();
    upload.write(&[2; 10]).unwrap();
    assert!(matches!(upload.write(&[2]), Err(BlobError::TooLarge { most: 10 })));
    // What was refused is as if it had not been given.
    assert_eq!(upload.finish(None).unwrap().digest, digest(&[2; 10]));
    place.is_consistent();
}

#[test]
fn an_owner_may_have_so_many_bytes_and_no_more() {
    let place = Place::new(Bounds { per_owner: 10, ..WIDE });
    place.put("ann", &[1; 6]).unwrap();
    let refused = place.blobs.begin("ann", Some(5)).err().unwrap();
    assert!(matches!(refused, BlobError::OwnerFull { used: 6, wanted: 5, most: 10 }));
    assert_eq!(refused.to_string(), "no room for 5 bytes: your blobs have 6 of 10 bytes");
    let mut upload = place.blobs.begin("ann", None).unwrap();
    upload.write(&[2; 4]).unwrap();
    assert!(matches!(upload.write(&[2]), Err(BlobError::OwnerFull { used: 10, wanted: 1, most: 10 })));
    upload.finish(None).unwrap();
    place.put("bob", &[2; 10]).unwrap();
    place.is_consistent();
}

#[test]
fn all_together_may_have_so_many_bytes_and_no_more() {
    let place = Place::new(Bounds { total: 10, ..WIDE });
    place.put("ann", &[1; 6]).unwrap();
    let refused = place.blobs.begin("bob", Some(5)).err().unwrap();
    assert!(matches!(refused, BlobError::Full { used: 6, wanted: 5, most: 10 }));
    assert_eq!(refused.to_string(), "no room for 5 bytes: all blobs together have 6 of 10 bytes");
    place.put("bob", &[2; 4]).unwrap();
    let mut upload = place.blobs.begin("cid", None).unwrap();
    assert!(matches!(upload.write(&[3]), Err(BlobError::Full { used: 10, wanted: 1, most: 10 })));
    drop(upload);
    place.blobs.remove("ann", &digest(&[1; 6])).unwrap();
    place.put("cid", &[3; 6]).unwrap();
    place.is_consistent();
}

#[test]
fn concurrent_uploads_share_the_room() {
    let place = Place::new(Bounds { per_owner: 10, total: 15, ..WIDE });
    let [mut first, mut second] = [(); 2].map(|()| place.blobs.begin("ann", Some(10)).unwrap());
    first.write(&[1; 6]).unwrap();
    second.write(&[2; 4]).unwrap();
    assert!(matches!(second.write(&[2]), Err(BlobError::OwnerFull { used: 10, .. })));
    let mut third = place.blobs.begin("bob", None).unwrap();
    third.write(&[3; 5]).unwrap();
    assert!(matches!(third.write(&[3]), Err(BlobError::Full { used: 15, .. })));
    drop(first);
    second.write(&[2; 6]).unwrap();
    second.finish(None).unwrap();
    third.finish(None).unwrap();
    assert_eq!(place.blobs.usage(), Usage { blobs: 2, bytes: 15, uploading: 0 });
    place.is_consistent();
}

#[test]
fn of_two_uploads_of_the_same_bytes_one_is_known() {
    for place in both_ways() {
        let [mut first, mut second] = ["ann", "bob"].map(|owner| place.blobs.begin(owner, None).unwrap());
        first.write(b"same").unwrap();
        second.write(b"same").unwrap();
        assert_eq!(place.blobs.usage().uploading, 8);
        assert!(!second.finish(None).unwrap().known);
        assert!(first.finish(None).unwrap().known);
        assert_eq!(place.blobs.usage(), Usage { blobs: 1, bytes: 4, uploading: 0 });
        assert_eq!((place.blobs.usage_of("ann"), place.blobs.usage_of("bob")), (4, 4));
        place.is_consistent();
    }
}

#[test]
fn who_does_not_own_it_cannot_remove_it() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    assert!(!place.blobs.remove("bob", &digest(b"bytes")).unwrap());
    assert!(!place.blobs.remove("ann", &digest(b"other")).unwrap());
    assert!(place.has(b"bytes"));
}

#[test]
fn the_bytes_go_with_the_last_owner() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    place.put("bob", b"bytes").unwrap();
    assert!(place.blobs.remove("ann", &digest(b"bytes")).unwrap());
    assert!(!place.blobs.remove("ann", &digest(b"bytes")).unwrap());
    assert_eq!(place.blobs.usage_of("ann"), 0);
    assert!(place.has(b"bytes"));
    place.is_consistent();
    assert!(place.blobs.remove("bob", &digest(b"bytes")).unwrap());
    assert!(!place.has(b"bytes"));
    place.is_empty();
    assert_eq!(std::fs::read_dir(place.path("owners")).unwrap().count(), 0);
}

#[test]
fn an_open_blob_outlives_its_removal() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    let (mut file, _) = place.blobs.get(&digest(b"bytes")).unwrap().unwrap();
    place.blobs.remove("ann", &digest(b"bytes")).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "bytes");
}

#[test]
fn what_was_not_used_for_its_lifetime_is_swept() {
    let place = Place::new(WIDE);
    for bytes in [b"old", b"new", b"got", b"put"] {
        place.put("ann", bytes).unwrap();
        set_last_use(&place.data(bytes), Duration::from_secs(3601));
    }
    set_last_use(&place.data(b"new"), Duration::from_secs(3590));
    assert!(place.has(b"got"));
    assert!(place.put("bob", b"put").unwrap().known);
    assert_eq!(place.blobs.sweep().unwrap(), (1, 3));
    assert_eq!(place.blobs.sweep().unwrap(), (0, 0));
    assert!(!place.has(b"old"));
    assert!(place.has(b"new") && place.has(b"got") && place.has(b"put"));
    assert_eq!(place.blobs.usage(), Usage { blobs: 3, bytes: 9, uploading: 0 });
    place.is_consistent();
}

#[test]
fn a_use_is_recorded_once_a_minute() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    let last_use = || std::fs::metadata(place.data(b"bytes")).unwrap().modified().unwrap();
    for (ago, recorded) in [(50, false), (61, true)] {
        set_last_use(&place.data(b"bytes"), Duration::from_secs(ago));
        let before = last_use();
        assert!(place.has(b"bytes"));
        assert_eq!(last_use() > before, recorded, "{ago} s ago");
    }
}

#[test]
fn a_last_use_in_the_future_is_not_swept_and_the_next_use_corrects_it() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    let future = SystemTime::now() + Duration::from_secs(1_000_000);
    File::open(place.data(b"bytes")).unwrap().set_modified(future).unwrap();
    assert_eq!(place.blobs.sweep().unwrap(), (0, 0));
    assert!(place.has(b"bytes"));
    assert!(std::fs::metadata(place.data(b"bytes")).unwrap().modified().unwrap() < future);
}

#[test]
fn what_a_crash_leaves_in_staging_is_removed() {
    let place = Place::new(WIDE);
    std::fs::write(place.path("staging/0123456789abcdef"), "half").unwrap();
    symlink("/etc/passwd", place.path("staging/link")).unwrap();
    open(place.directory.path(), WIDE);
    place.is_empty();
    std::fs::write(place.path("staging/0123456789abcdef"), "half").unwrap();
    place.blobs.sweep().unwrap();
    place.is_empty();
}

#[test]
fn the_upload_of_another_instance_stays() {
    for place in both_ways() {
        let mut upload = place.blobs.begin("ann", None).unwrap();
        upload.write(b"by").unwrap();
        let other = open(place.directory.path(), WIDE);
        other.sweep().unwrap();
        upload.write(b"tes").unwrap();
        upload.finish(Some(&digest(b"bytes"))).unwrap();
        assert!(place.has(b"bytes"));
    }
}

#[test]
fn a_mark_without_its_blob_is_removed() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    std::fs::remove_file(place.data(b"bytes")).unwrap();
    let again = open(place.directory.path(), WIDE);
    assert_eq!(again.usage_of("ann"), 0);
    assert_eq!(place.files(), BTreeSet::new());
    assert!(!place.has(b"bytes"));
    place.is_empty();
}

#[test]
fn a_blob_without_owners_stays_until_it_expires() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    std::fs::remove_file(place.mark("ann", b"bytes")).unwrap();
    let again = open(place.directory.path(), WIDE);
    assert_eq!(again.usage_of("ann"), 0);
    assert_eq!(again.usage(), Usage { blobs: 1, bytes: 5, uploading: 0 });
    assert_eq!(read(&again, b"bytes").unwrap(), b"bytes");
    assert!(!again.remove("ann", &digest(b"bytes")).unwrap());
    set_last_use(&place.data(b"bytes"), Duration::from_secs(3601));
    assert_eq!(again.sweep().unwrap(), (1, 5));
    assert_eq!(place.files(), BTreeSet::new());
}

#[test]
fn a_blob_that_is_gone_from_the_disk_is_put_again() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    std::fs::remove_file(place.data(b"bytes")).unwrap();
    assert!(!place.put("ann", b"bytes").unwrap().known);
    assert!(place.has(b"bytes"));
    place.is_consistent();
}

#[test]
fn a_blob_whose_size_has_changed_is_not_served_but_removed() {
    let place = Place::new(WIDE);
    for owner in ["ann", "bob"] {
        place.put(owner, b"bytes").unwrap();
    }
    let truncate = || std::fs::write(place.data(b"bytes"), "byt").unwrap();
    std::fs::set_permissions(place.data(b"bytes"), PermissionsExt::from_mode(0o644)).unwrap();
    truncate();
    assert!(!place.has(b"bytes"));
    place.is_empty();
    place.put("ann", b"bytes").unwrap();
    std::fs::set_permissions(place.data(b"bytes"), PermissionsExt::from_mode(0o644)).unwrap();
    truncate();
    assert!(!place.put("bob", b"bytes").unwrap().known, "a put repairs it");
    assert_eq!(read(&place.blobs, b"bytes").unwrap(), b"bytes");
    assert_eq!(place.blobs.usage_of("ann"), 5);
    place.is_consistent();
}

#[test]
fn a_link_in_place_of_a_blob_is_never_followed() {
    for place in both_ways() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, b"bytes").unwrap();
        symlink(&secret, place.data(b"bytes")).unwrap();
        assert!(!place.has(b"bytes"));
        place.is_empty();
        symlink(&secret, place.data(b"bytes")).unwrap();
        assert!(!place.put("ann", b"bytes").unwrap().known);
        assert!(std::fs::symlink_metadata(place.data(b"bytes")).unwrap().is_file());
        symlink(&secret, place.data(b"other")).unwrap();
        assert_eq!(open(place.directory.path(), WIDE).usage().blobs, 1);
        assert!(std::fs::symlink_metadata(place.data(b"other")).is_err());
        assert_eq!(std::fs::read(&secret).unwrap(), b"bytes");
    }
}

#[test]
fn a_link_in_place_of_a_mark_or_an_owner_is_never_followed() {
    let place = Place::new(WIDE);
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join(digest(b"bytes").hex());
    std::fs::write(&target, "").unwrap();
    symlink(outside.path(), place.path("owners").join(directory_name("ann"))).unwrap();
    assert!(!place.blobs.remove("ann", &digest(b"bytes")).unwrap());
    place.put("ann", b"bytes").unwrap();
    assert!(std::fs::symlink_metadata(place.mark("ann", b"bytes").parent().unwrap()).unwrap().is_dir());

    std::fs::remove_file(place.mark("ann", b"bytes")).unwrap();
    symlink(&target, place.mark("ann", b"bytes")).unwrap();
    assert!(!place.blobs.remove("ann", &digest(b"bytes")).unwrap());
    place.put("ann", b"bytes").unwrap();
    assert!(std::fs::symlink_metadata(place.mark("ann", b"bytes")).unwrap().is_file());
    assert!(target.exists());
    place.is_consistent();
}

#[test]
fn a_link_in_place_of_a_directory_is_replaced_by_open_and_never_followed() {
    let outside = tempfile::tempdir().unwrap();
    for path in ["data", "owners", "staging", "data/00"] {
        let place = Place::new(WIDE);
        std::fs::remove_dir_all(place.path(path)).unwrap();
        symlink(outside.path(), place.path(path)).unwrap();
        let zero = Digest::new([0; 32]);
        if path == "data/00" {
            let error = place.blobs.get(&zero).unwrap_err();
            assert_eq!(error.to_string(), "open data/00");
        }
        assert!(open(place.directory.path(), WIDE).get(&zero).unwrap().is_none());
        assert!(std::fs::symlink_metadata(place.path(path)).unwrap().is_dir());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

#[test]
fn what_is_neither_blob_nor_mark_is_removed_and_what_lies_beside_stays() {
    let place = Place::new(WIDE);
    place.put("ann", b"bytes").unwrap();
    let hex = digest(b"bytes").hex().to_owned();
    let wrong_shelf = if hex.starts_with("00") { "01" } else { "00" };
    let marks = place.mark("ann", b"bytes").parent().unwrap().to_owned();
    let removed = [
        place.path(format!("data/{wrong_shelf}/{hex}")),
        place.path("data/00/short"),
        place.path(format!("data/{}/{}", &hex[..2], hex.to_uppercase())),
        marks.join("short"),
        marks.join("0".repeat(64)),
        place.path("owners").join("1".repeat(64)),
    ];
    let kept = [place.path("notes"), place.path("data/notes"), place.path("owners/notes")];
    removed.iter().chain(&kept).for_each(|path| std::fs::write(path, "bytes").unwrap());
    open(place.directory.path(), WIDE);
    for path in &removed {
        assert!(!path.exists(), "{path:?}");
    }
    assert!(kept.iter().all(|path| path.exists()));
    assert!(place.data(b"bytes").exists() && place.mark("ann", b"bytes").exists());
}

#[test]
fn a_pipe_in_place_of_a_blob_is_not_waited_for() {
    let place = Place::new(WIDE);
    let pipe = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, place.data(b"bytes"), pipe, Mode::RUSR | Mode::WUSR, 0).unwrap();
    assert!(!place.has(b"bytes"));
    place.is_empty();
}

#[test]
fn a_directory_in_place_of_a_blob_is_an_error_that_names_it() {
    let place = Place::new(WIDE);
    std::fs::create_dir_all(place.data(b"bytes").join("full")).unwrap();
    assert!(!place.has(b"bytes"));
    let error = place.put("ann", b"bytes").unwrap_err().to_string();
    assert!(error.starts_with("name an upload data/") && error.ends_with(digest(b"bytes").hex()), "{error}");
    assert_eq!(place.blobs.usage(), Usage::default());
    assert!(!place.mark("ann", b"bytes").exists());
}

#[test]
fn two_instances_see_each_other() {
    for place in both_ways() {
        let other = open(place.directory.path(), WIDE);
        place.put("ann", b"bytes").unwrap();
        assert_eq!(read(&other, b"bytes").unwrap(), b"bytes");
        assert_eq!(other.usage_of("ann"), 5);
        assert!(put(&other, "bob", b"bytes").unwrap().known);
        // The bytes are bob's too, of which this instance has not heard.
        assert!(place.blobs.remove("ann", &digest(b"bytes")).unwrap());
        assert!(place.has(b"bytes"));
        assert!(other.remove("bob", &digest(b"bytes")).unwrap());
        assert!(!place.has(b"bytes"));
        place.is_empty();
    }
}

#[test]
fn a_sweep_learns_what_another_instance_has_put() {
    let place = Place::new(WIDE);
    let other = open(place.directory.path(), WIDE);
    put(&other, "ann", b"bytes").unwrap();
    let mut upload = place.blobs.begin("bob", None).unwrap();
    upload.write(b"abc").unwrap();
    assert_eq!(place.blobs.sweep().unwrap(), (0, 0));
    assert_eq!(place.blobs.usage(), Usage { blobs: 1, bytes: 5, uploading: 3 });
    assert_eq!(place.blobs.usage_of("ann"), 5);
}

#[test]
fn a_lock_shared_by_descent_still_excludes() {
    // Two instances that were handed duplicates of one descriptor: its lock alone would be one and the same.
    let directory = tempfile::tempdir().unwrap();
    let one = rustix::fs::open(directory.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let first = Blobs::open(one.try_clone().unwrap(), WIDE).unwrap();
    let second = Blobs::open(one, WIDE).unwrap();
    let locked = first.store.lock().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| second.store.lock().map(drop));
        thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        drop(locked);
        waits.join().unwrap().unwrap();
    });
}

#[test]
fn an_upload_that_begins_does_not_break_the_lock_of_another_thread() {
    let place = Place::named(WIDE);
    let locked = place.blobs.store.lock().unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| place.blobs.begin("ann", None).map(drop));
        thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        drop(locked);
        waits.join().unwrap().unwrap();
    });
}

#[test]
fn a_full_disk_is_told_from_other_failures() {
    let error = |kind: io::ErrorKind| BlobError::io("write", "staging", kind.into());
    assert!(matches!(error(io::ErrorKind::StorageFull), BlobError::DiskFull { .. }));
    assert!(matches!(error(io::ErrorKind::QuotaExceeded), BlobError::DiskFull { .. }));
    assert!(matches!(error(io::ErrorKind::PermissionDenied), BlobError::Io { .. }));
    assert_eq!(error(io::ErrorKind::StorageFull).to_string(), "write staging: the disk is full");
}

/// 8 threads put, read and remove the same and different blobs, through one instance or two.
fn storm(instances: &[Arc<Blobs>]) {
    thread::scope(|scope| {
        for number in 0..8usize {
            let blobs = &instances[number % instances.len()];
            scope.spawn(move || {
                let owner = format!("owner {number}");
                for round in 0..12u32 {
                    let shared = format!("shared {}", round % 3);
                    put(blobs, &owner, shared.as_bytes()).unwrap();
                    assert_eq!(read(blobs, shared.as_bytes()).unwrap(), shared.as_bytes());
                    assert!(blobs.remove(&owner, &digest(shared.as_bytes())).unwrap());
                    put(blobs, &owner, format!("{number} {round}").as_bytes()).unwrap();
                }
                put(blobs, &owner, b"of all").unwrap();
                blobs.sweep().unwrap();
            });
        }
    });
}

#[test]
fn eight_threads_put_the_same_and_different_blobs() {
    for place in both_ways() {
        storm(std::slice::from_ref(&place.blobs));
        assert_eq!(place.blobs.usage().blobs, 8 * 12 + 1);
        assert_eq!(place.files().len(), 97 + 96 + 8);
        place.is_consistent();
    }
}

#[test]
fn eight_threads_of_two_instances_put_the_same_and_different_blobs() {
    for place in both_ways() {
        let other = open(place.directory.path(), WIDE);
        storm(&[place.blobs.clone(), other]);
        place.blobs.sweep().unwrap();
        assert_eq!(place.blobs.usage().blobs, 8 * 12 + 1);
        assert_eq!(place.files().len(), 97 + 96 + 8);
        place.is_consistent();
    }
}

/// What a client does: owner and blob are numbers, the blob has as many bytes as its number.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Put(u8, u8),
    Mismatch(u8, u8),
    GiveUp(u8, u8),
    Get(u8),
    Remove(u8, u8),
    Age(u8),
    Sweep,
    Reopen,
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let (owner, blob) = (0..3u8, 0..12u8);
    let deed = prop_oneof![
        4 => (owner.clone(), blob.clone()).prop_map(|(owner, blob)| Deed::Put(owner, blob)),
        1 => (owner.clone(), blob.clone()).prop_map(|(owner, blob)| Deed::Mismatch(owner, blob)),
        1 => (owner.clone(), blob.clone()).prop_map(|(owner, blob)| Deed::GiveUp(owner, blob)),
        2 => blob.clone().prop_map(Deed::Get),
        2 => (owner, blob.clone()).prop_map(|(owner, blob)| Deed::Remove(owner, blob)),
        1 => blob.prop_map(Deed::Age),
        1 => Just(Deed::Sweep),
        1 => Just(Deed::Reopen),
    ];
    prop::collection::vec(deed, 1..40)
}

/// The same in a few lines, without a disk: for each blob its owners and whether it is old.
#[derive(Default)]
struct Model(BTreeMap<u8, (BTreeSet<u8>, bool)>);

impl Model {
    fn total(&self) -> u64 {
        self.0.keys().map(|&blob| u64::from(blob)).sum()
    }

    fn of(&self, owner: u8) -> u64 {
        self.0.iter().filter(|(_, (owners, _))| owners.contains(&owner)).map(|(&blob, _)| u64::from(blob)).sum()
    }

    fn has_room(&self, owner: u8, blob: u8, bounds: &Bounds) -> bool {
        let size = u64::from(blob);
        size <= bounds.each && self.of(owner) + size <= bounds.per_owner && self.total() + size <= bounds.total
    }

    fn put(&mut self, owner: u8, blob: u8) -> bool {
        let known = self.0.contains_key(&blob);
        let entry = self.0.entry(blob).or_default();
        entry.0.insert(owner);
        entry.1 = false;
        known
    }

    fn remove(&mut self, owner: u8, blob: u8) -> bool {
        let Some((owners, _)) = self.0.get_mut(&blob) else { return false };
        let removed = owners.remove(&owner);
        if owners.is_empty() {
            self.0.remove(&blob);
        }
        removed
    }

    fn sweep(&mut self) -> (u64, u64) {
        let old: Vec<u8> = self.0.iter().filter(|(_, (_, old))| *old).map(|(&blob, _)| blob).collect();
        old.iter().for_each(|blob| drop(self.0.remove(blob)));
        (old.len() as u64, old.into_iter().map(u64::from).sum())
    }
}

fn apply(place: &mut Place, model: &mut Model, deed: Deed) {
    let bounds = place.blobs.bounds;
    let (name, bytes) = (|owner: u8| owner.to_string(), |blob: u8| vec![blob; blob.into()]);
    match deed {
        Deed::Put(owner, blob) => match place.put(&name(owner), &bytes(blob)) {
            Ok(stored) => {
                assert!(model.has_room(owner, blob, &bounds));
                assert_eq!(stored.known, model.put(owner, blob));
            }
            Err(error) => assert!(!model.has_room(owner, blob, &bounds), "{error}"),
        },
        Deed::Mismatch(owner, blob) if model.has_room(owner, blob, &bounds) => {
            let mut upload = place.blobs.begin(&name(owner), None).unwrap();
            upload.write(&bytes(blob)).unwrap();
            upload.finish(Some(&Digest::new([0; 32]))).unwrap_err();
        }
        Deed::GiveUp(owner, blob) | Deed::Mismatch(owner, blob) => {
            let mut upload = place.blobs.begin(&name(owner), None).unwrap();
            assert_eq!(upload.write(&bytes(blob)).is_ok(), model.has_room(owner, blob, &bounds));
        }
        Deed::Get(blob) => {
            let known = model.0.get_mut(&blob).map(|(_, old)| *old = false).is_some();
            assert_eq!(read(&place.blobs, &bytes(blob)), known.then(|| bytes(blob)));
        }
        Deed::Remove(owner, blob) => {
            let removed = place.blobs.remove(&name(owner), &digest(&bytes(blob))).unwrap();
            assert_eq!(removed, model.remove(owner, blob));
        }
        Deed::Age(blob) => {
            if let Some((_, old)) = model.0.get_mut(&blob) {
                set_last_use(&place.data(&bytes(blob)), Duration::from_secs(4000));
                *old = true;
            }
        }
        Deed::Sweep => assert_eq!(place.blobs.sweep().unwrap(), model.sweep()),
        Deed::Reopen => place.blobs = open(place.directory.path(), bounds),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_done_the_directory_and_the_sums_are_those_of_the_model(deeds in deeds(), named: bool) {
        let bounds = Bounds { each: 10, per_owner: 25, total: 40, ..WIDE };
        let mut place = if named { Place::named(bounds) } else { Place::new(bounds) };
        let mut model = Model::default();
        for deed in deeds {
            apply(&mut place, &mut model, deed);
            let usage = Usage { blobs: model.0.len() as u64, bytes: model.total(), uploading: 0 };
            prop_assert_eq!(place.blobs.usage(), usage);
            for owner in 0..3 {
                prop_assert_eq!(place.blobs.usage_of(&owner.to_string()), model.of(owner));
            }
        }
        place.is_consistent();
        let marks: usize = model.0.values().map(|(owners, _)| owners.len()).sum();
        prop_assert_eq!(place.files().len(), model.0.len() + marks);
    }
}
