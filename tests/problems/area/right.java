import java.util.*;

public class Main {
    public static void main(String[] args) {
        double radius = new Scanner(System.in).useLocale(Locale.ROOT).nextDouble();
        System.out.printf(Locale.ROOT, "area%n%.7f%n", Math.PI * radius * radius);
    }
}
