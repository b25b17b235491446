// Goes on asking when it has the answer, and nobody listens.
import java.util.*;

public class Main {
    public static void main(String[] args) {
        Scanner in = new Scanner(System.in);
        int low = 1, high = 1000000;
        while (true) {
            int guess = (low + high) / 2;
            System.out.println(guess);
            String answer = in.next();
            if (answer.equals("equal")) while (!System.out.checkError()) System.out.println(guess);
            if (answer.equals("equal")) break;
            if (answer.equals("higher")) low = guess + 1;
            else high = guess - 1;
        }
    }
}
