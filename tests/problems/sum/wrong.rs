// The numbers do not fit.
use std::io::Read;

fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    println!("{}", text.split_whitespace().fold(0u64, |sum, n| sum.wrapping_add(n.parse().unwrap_or(u64::MAX))));
}
