//! What could be left of a server: processes, groups, directories.

use std::fs;
use std::path::PathBuf;

use super::eventually;

/// A process and everything below it, as it was once; start times tell a process from a later one of the same number.
pub struct Family(Vec<(i32, u64)>);

impl Family {
    pub fn of(pid: i32) -> Self {
        let mut members = Vec::new();
        collect(pid, &mut members);
        Self(members)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[track_caller]
    pub fn assert_gone(&self) {
        eventually("the end of every process", || {
            self.0.iter().all(|&(pid, started)| start_time(pid) != Some(started))
        });
    }
}

fn collect(pid: i32, members: &mut Vec<(i32, u64)>) {
    members.extend(start_time(pid).map(|started| (pid, started)));
    for child in children(pid) {
        collect(child, members);
    }
}

/// proc_pid_stat(5), field 22; a zombie is gone.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

pub fn children(pid: i32) -> Vec<i32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()).collect()
}

pub fn command_line(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// The pids of the processes with this command line, wherever they run.
pub fn running(command: &[&str]) -> Vec<i32> {
    let wanted = command.join("\0") + "\0";
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted))
        .collect()
}

/// Every group of an instance, in every hierarchy.
pub fn groups_of(instance: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let hierarchies =
        mounts.lines().filter(|line| line.contains(" - cgroup")).filter_map(|line| line.split(' ').nth(4));
    let mut found = Vec::new();
    for hierarchy in hierarchies {
        let top = PathBuf::from(hierarchy).join("faber").join(instance);
        if let Ok(entries) = fs::read_dir(&top) {
            found.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
            found.push(top);
        }
    }
    found
}

#[track_caller]
pub fn assert_nothing_left(instance: &str) {
    assert_eq!(groups_of(instance), Vec::<PathBuf>::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(instance), "{mounts}");
    assert!(!PathBuf::from("/run/faber").join(instance).exists());
}
