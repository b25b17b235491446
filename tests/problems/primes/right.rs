fn main() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let n: usize = line.trim().parse().unwrap();
    let mut prime = vec![true; n + 1];
    for i in (2..).take_while(|i| i * i <= n) {
        if prime[i] {
            (i * i..=n).step_by(i).for_each(|j| prime[j] = false);
        }
    }
    println!("{}", prime.iter().skip(2).filter(|&&prime| prime).count());
}
