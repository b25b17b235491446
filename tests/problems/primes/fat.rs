// Two hundred bytes for each number.
fn main() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let n: usize = line.trim().parse().unwrap();
    let mut numbers: Vec<[u64; 25]> = (0..=n as u64).map(|n| [n; 25]).collect();
    for i in (2..).take_while(|i| i * i <= n) {
        (i * i..=n).step_by(i).for_each(|j| numbers[j][24] = 0);
    }
    println!("{}", numbers.iter().skip(2).filter(|number| number[24] > 0).count());
}
