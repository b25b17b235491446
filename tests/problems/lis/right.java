import java.io.*;
import java.util.*;

public class Main {
    public static void main(String[] args) throws IOException {
        StreamTokenizer in = new StreamTokenizer(new BufferedInputStream(System.in));
        in.nextToken();
        int n = (int) in.nval, length = 0;
        int[] ends = new int[n];
        for (int i = 0; i < n; i++) {
            in.nextToken();
            int place = Arrays.binarySearch(ends, 0, length, (int) in.nval);
            if (place < 0) place = -place - 1;
            ends[place] = (int) in.nval;
            if (place == length) length++;
        }
        System.out.println(length);
    }
}
