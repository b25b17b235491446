import java.util.*;
import java.util.stream.*;

public class Main {
    public static void main(String[] args) {
        int n = new Scanner(System.in).nextInt();
        var numbers = IntStream.concat(
            IntStream.rangeClosed(1, n).map(i -> n + 1 - i).filter(i -> i % 2 == 1),
            IntStream.rangeClosed(1, n).map(i -> n + 1 - i).filter(i -> i % 2 == 0));
        if (n == 2 || n == 3) System.out.println("none");
        else numbers.forEach(System.out::println);
    }
}
