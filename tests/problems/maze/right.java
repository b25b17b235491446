import java.io.*;
import java.util.*;

public class Main {
    public static void main(String[] args) throws Exception {
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        int rows = Integer.parseInt(in.readLine().split(" ")[0]);
        String[] maze = new String[rows];
        for (int i = 0; i < rows; i++) maze[i] = in.readLine();
        int columns = maze[0].length();
        int[] steps = new int[rows * columns];
        Arrays.fill(steps, -1);
        ArrayDeque<Integer> queue = new ArrayDeque<>();
        queue.add(String.join("", maze).indexOf('S'));
        steps[queue.peek()] = 0;
        int[][] ways = {{1, 0}, {-1, 0}, {0, 1}, {0, -1}};
        while (!queue.isEmpty()) {
            int at = queue.remove(), row = at / columns, column = at % columns;
            if (maze[row].charAt(column) == 'T') {
                System.out.println(steps[at]);
                return;
            }
            for (int[] way : ways) {
                int r = row + way[0], c = column + way[1];
                if (r < 0 || r >= rows || c < 0 || c >= columns || maze[r].charAt(c) == '#') continue;
                if (steps[r * columns + c] >= 0) continue;
                steps[r * columns + c] = steps[at] + 1;
                queue.add(r * columns + c);
            }
        }
        System.out.println(-1);
    }
}
