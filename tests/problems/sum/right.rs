use std::io::Read;

fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let numbers: Vec<Vec<u8>> = text.split_whitespace().map(|n| n.bytes().rev().map(|c| c - b'0').collect()).collect();
    let (mut sum, mut carry, mut at) = (Vec::new(), 0, 0);
    while numbers.iter().any(|n| at < n.len()) || carry > 0 {
        carry += numbers.iter().filter_map(|n| n.get(at)).sum::<u8>();
        sum.push(b'0' + carry % 10);
        carry /= 10;
        at += 1;
    }
    sum.reverse();
    println!("{}", String::from_utf8(sum).unwrap());
}
