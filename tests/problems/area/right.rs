fn main() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let radius: f64 = line.trim().parse().unwrap();
    println!("area {:e}", std::f64::consts::PI * radius * radius);
}
