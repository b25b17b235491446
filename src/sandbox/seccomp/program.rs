//! A filter as a decision tree in classic BPF (seccomp(2), linux/filter.h): system call numbers are found by halving.
//!
//! The kernel runs every filter once for each system call there is when it is loaded (seccomp_cache_prepare()), so a list
//! that is gone through from its beginning costs each container half a millisecond.

use std::collections::BTreeMap;

use libc::{
    BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_USER_NOTIF,
};
use seccompiler::{BpfProgram, sock_filter};

/// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// AUDIT_ARCH_*: a call of another architecture has other numbers (audit.h).
#[cfg(target_arch = "x86_64")]
const THIS_ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const THIS_ARCHITECTURE: u32 = 0xc000_00b7;

/// What becomes of a system call. Arguments are looked at as the lower half of their 64 bits: as the `int` that the calls
/// named here take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    Allow,
    /// It does nothing and answers so; 0 is success.
    Answer(i32),
    /// It waits until whoever has the filter's listener lets it go on.
    Wait,
    /// By whether the argument is one of the values.
    OneOf {
        argument: u8,
        values: Vec<u32>,
        then: Box<Rule>,
        otherwise: Box<Rule>,
    },
    /// By whether the argument has any bit of the mask.
    AnyBit {
        argument: u8,
        mask: u32,
        then: Box<Rule>,
        otherwise: Box<Rule>,
    },
}

/// Compiles a filter that has `rules` for the calls that are named and `default` for all others; a call of another
/// architecture ends the process.
pub fn compile(rules: &BTreeMap<u32, Rule>, default: &Rule) -> BpfProgram {
    let head = [
        load(ARCHITECTURE),
        jump(BPF_JEQ, THIS_ARCHITECTURE, 1, 0),
        instruction(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    head.into_iter().chain(tree(&segments(rules, default))).collect()
}

/// The numbers from which on another rule holds, up to the next: 0 is the first.
fn segments<'a>(rules: &'a BTreeMap<u32, Rule>, default: &'a Rule) -> Vec<(u32, &'a Rule)> {
    let mut segments = vec![(0, default)];
    for (&number, rule) in rules {
        segments.push((number, rule));
        segments.push((number + 1, default));
    }
    // Of two for the same number the later holds; neighbours with the same rule are one.
    segments.reverse();
    segments.dedup_by_key(|(from, _)| *from);
    segments.reverse();
    segments.dedup_by(|later, earlier| later.1 == earlier.1);
    segments
}

fn tree(segments: &[(u32, &Rule)]) -> BpfProgram {
    match segments {
        [] => BpfProgram::new(),
        [(_, rule)] => decide(rule),
        _ => {
            let (lower, upper) = segments.split_at(segments.len() / 2);
            branch(&[jump(BPF_JGE, upper[0].0, 0, 0)], tree(upper), tree(lower))
        }
    }
}

fn decide(rule: &Rule) -> BpfProgram {
    match rule {
        Rule::Allow => vec![instruction(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)],
        Rule::Answer(errno) => vec![instruction(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (*errno as u32 & 0xffff))],
        Rule::Wait => vec![instruction(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF)],
        Rule::OneOf { argument, values, then, otherwise } => {
            let tests: Vec<_> = values.iter().map(|&value| jump(BPF_JEQ, value, 0, 0)).collect();
            with_argument(*argument, branch(&tests, decide(then), decide(otherwise)))
        }
        Rule::AnyBit { argument, mask, then, otherwise } => {
            with_argument(*argument, branch(&[jump(BPF_JSET, *mask, 0, 0)], decide(then), decide(otherwise)))
        }
    }
}

fn with_argument(argument: u8, rest: BpfProgram) -> BpfProgram {
    // The lower half comes first on every architecture there is here: both are little-endian.
    [load(ARGUMENTS + 8 * u32::from(argument))].into_iter().chain(rest).collect()
}

/// `then` if any of the tests holds, else `otherwise`, which comes first. A test's jump reaches 255 instructions, an
/// unconditional one any.
fn branch(tests: &[sock_filter], then: BpfProgram, otherwise: BpfProgram) -> BpfProgram {
    let count = tests.len();
    let is_near = count - 1 + otherwise.len() <= u8::MAX.into();
    // Behind the tests is `otherwise`, or the jump to `then`, which the last one that fails steps over.
    let far = (!is_near).then(|| instruction(BPF_JMP | BPF_JA, otherwise.len() as u32));
    let beyond = if is_near { otherwise.len() } else { 0 };
    let tests = tests.iter().enumerate().map(|(index, test)| {
        let jt = (count - 1 - index + beyond) as u8;
        sock_filter { jt, jf: u8::from(!is_near && index + 1 == count), ..test.clone() }
    });
    tests.chain(far).chain(otherwise).chain(then).collect()
}

fn load(offset: u32) -> sock_filter {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { jt, jf, ..instruction(BPF_JMP | test | BPF_K, k) }
}

fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    const EPERM: Rule = Rule::Answer(libc::EPERM);

    /// What the kernel would make of it: the value returned, and how many instructions that took.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> (u32, usize) {
        let data = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            _ => (arguments[(offset - ARGUMENTS) as usize / 8] >> (8 * (offset % 8))) as u32,
        };
        let (mut at, mut accumulator, mut steps) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let by = |test: bool| usize::from(if test { jt } else { jf });
            steps += 1;
            at += 1;
            match u32::from(code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => accumulator = data(k),
                code if code == BPF_RET | BPF_K => return (k, steps),
                code if code == BPF_JMP | BPF_JA => at += k as usize,
                code if code == BPF_JMP | BPF_JEQ | BPF_K => at += by(accumulator == k),
                code if code == BPF_JMP | BPF_JGE | BPF_K => at += by(accumulator >= k),
                code if code == BPF_JMP | BPF_JSET | BPF_K => at += by(accumulator & k != 0),
                code => panic!("no such instruction: {code:#x}"),
            }
        }
    }

    pub fn answer(program: &[sock_filter], number: u32, arguments: [u64; 6]) -> u32 {
        run(program, THIS_ARCHITECTURE, number, arguments).0
    }

    #[test]
    fn every_number_gets_its_rule_and_no_other() {
        let allowed = |number: &u32| number.is_multiple_of(3) || (40..60).contains(number);
        let rules: BTreeMap<u32, Rule> = (0..400).filter(allowed).map(|number| (number, Rule::Allow)).collect();
        let program = compile(&rules, &EPERM);
        for number in (0..1000).chain([u32::MAX, 1 << 30, (1 << 30) + 3]) {
            let (expected, named) = (SECCOMP_RET_ALLOW, rules.contains_key(&number));
            let expected = if named { expected } else { SECCOMP_RET_ERRNO | libc::EPERM as u32 };
            let (found, steps) = run(&program, THIS_ARCHITECTURE, number, [0; 6]);
            assert_eq!(found, expected, "system call {number}");
            assert!(steps < 30, "{steps} steps for system call {number}");
            assert_eq!(run(&program, THIS_ARCHITECTURE ^ 1, number, [0; 6]).0, SECCOMP_RET_KILL_PROCESS);
        }
    }

    #[test]
    fn arguments_decide_by_their_lower_half() {
        let rule = Rule::OneOf {
            argument: 2,
            values: vec![3, 7, u32::MAX],
            then: Box::new(Rule::AnyBit {
                argument: 5,
                mask: 0x80,
                then: Box::new(Rule::Answer(libc::ENOSYS)),
                otherwise: Box::new(Rule::Allow),
            }),
            otherwise: Box::new(Rule::Answer(0)),
        };
        let program = compile(&BTreeMap::from([(9, rule)]), &EPERM);
        let call = |third: u64, sixth: u64| answer(&program, 9, [0, 1, third, 0, 0, sixth]);
        for value in [3, 7, u64::MAX, u64::from(u32::MAX), 3 | 1 << 40] {
            assert_eq!(call(value, 0x7f), SECCOMP_RET_ALLOW);
            assert_eq!(call(value, 0x180), SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        }
        assert_eq!(call(4, 0), SECCOMP_RET_ERRNO);
        assert_eq!(answer(&program, 8, [0; 6]), SECCOMP_RET_ERRNO | libc::EPERM as u32);
    }
}
