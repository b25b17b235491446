fn main() {
    let (mut low, mut high) = (1, 1_000_000);
    loop {
        let guess = (low + high) / 2;
        println!("{guess}");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).unwrap();
        match answer.trim() {
            "equal" => return,
            "higher" => low = guess + 1,
            _ => high = guess - 1,
        }
    }
}
