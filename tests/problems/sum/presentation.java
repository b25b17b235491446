import java.math.BigInteger;
import java.util.Scanner;

public class Main {
    public static void main(String[] args) {
        Scanner in = new Scanner(System.in);
        System.out.print(new BigInteger(in.next()).add(new BigInteger(in.next())) + " \n\n");
    }
}
