import java.util.*;

public class Main {
    public static void main(String[] args) {
        Scanner in = new Scanner(System.in);
        int n = in.nextInt(), longest = 0;
        int[] numbers = new int[n], best = new int[n];
        for (int i = 0; i < n; i++) {
            numbers[i] = in.nextInt();
            for (int j = 0; j < i; j++) if (numbers[j] < numbers[i]) best[i] = Math.max(best[i], best[j]);
            longest = Math.max(longest, ++best[i]);
        }
        System.out.println(longest);
    }
}
