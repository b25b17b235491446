// Two hundred bytes for each number.
import java.util.*;

public class Main {
    public static void main(String[] args) {
        int n = new Scanner(System.in).nextInt(), count = 0;
        List<long[]> numbers = new ArrayList<>();
        for (int i = 0; i <= n; i++) numbers.add(new long[25]);
        for (int i = 2; i <= n; i++) {
            if (numbers.get(i)[0] > 0) continue;
            count++;
            for (long j = (long) i * i; j <= n; j += i) numbers.get((int) j)[0] = i;
        }
        System.out.println(count);
    }
}
