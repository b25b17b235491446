// All in order, from the middle.
import java.util.*;

public class Main {
    public static void main(String[] args) {
        int n = new Scanner(System.in).nextInt(), half = n / 2;
        if (n == 2 || n == 3) {
            System.out.println("none");
            return;
        }
        for (int i = 0; i < n; i++) System.out.println((half - 1 + n + i) % n + 1);
    }
}
