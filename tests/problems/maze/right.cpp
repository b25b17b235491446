#include <iostream>
#include <queue>
#include <string>
#include <vector>

int main() {
    int rows, columns;
    std::cin >> rows >> columns;
    std::string line;
    std::getline(std::cin, line);
    std::vector<std::string> maze(rows);
    std::queue<std::pair<int, int>> queue;
    std::vector<std::vector<int>> steps(rows, std::vector<int>(columns, -1));
    for (int row = 0; row < rows; row++) {
        std::getline(std::cin, maze[row]);
        if (auto at = maze[row].find('S'); at != std::string::npos) {
            queue.push({row, at});
            steps[row][at] = 0;
        }
    }
    for (; !queue.empty(); queue.pop()) {
        auto [row, column] = queue.front();
        if (maze[row][column] == 'T') {
            std::cout << steps[row][column] << '\n';
            return 0;
        }
        for (auto [down, right] : {std::pair{1, 0}, {-1, 0}, {0, 1}, {0, -1}}) {
            int r = row + down, c = column + right;
            if (r < 0 || r >= rows || c < 0 || c >= columns || maze[r][c] == '#' || steps[r][c] >= 0) continue;
            steps[r][c] = steps[row][column] + 1;
            queue.push({r, c});
        }
    }
    std::cout << "-1\n"; // walled
}
