public class Main {
    public static void main(String[] args) {
        System.out.println(500000);
        System.exit(4);
    }
}
