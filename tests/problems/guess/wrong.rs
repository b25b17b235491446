// One after the other.
fn main() {
    let mut guess = 1;
    loop {
        println!("{guess}");
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).unwrap();
        if answer.trim() == "equal" {
            return;
        }
        guess = guess % 1000 + 1;
    }
}
