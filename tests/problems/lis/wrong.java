// The longest that does not fall.
import java.io.*;
import java.util.*;

public class Main {
    public static void main(String[] args) throws IOException {
        StreamTokenizer in = new StreamTokenizer(new BufferedInputStream(System.in));
        in.nextToken();
        int n = (int) in.nval;
        TreeMap<Integer, Integer> ends = new TreeMap<>();
        int length = 0;
        for (int i = 0; i < n; i++) {
            in.nextToken();
            int number = (int) in.nval;
            Integer above = ends.higherKey(number);
            if (above == null) length++;
            else if (ends.merge(above, -1, Integer::sum) == 0) ends.remove(above);
            ends.merge(number, 1, Integer::sum);
        }
        System.out.println(length);
    }
}
