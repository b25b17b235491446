use std::io::Read;

fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).unwrap();
    let numbers: Vec<i32> = text.split_whitespace().skip(1).map(|n| n.parse().unwrap()).collect();
    let mut best = vec![1; numbers.len()];
    for i in 0..numbers.len() {
        for j in 0..i {
            if numbers[j] < numbers[i] && best[j] >= best[i] {
                best[i] = best[j] + 1;
            }
        }
    }
    println!("{}", best.iter().max().unwrap());
}
