use std::io::Read;

fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let mut ends: Vec<i32> = Vec::new();
    for number in text.split_ascii_whitespace().skip(1).map(|n| n.parse().unwrap()) {
        let place = ends.partition_point(|end| *end < number);
        if place == ends.len() {
            ends.push(number);
        } else {
            ends[place] = number;
        }
    }
    println!("{}", ends.len());
}
