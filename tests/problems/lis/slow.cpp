#include <algorithm>
#include <iostream>
#include <vector>

int main() {
    int n;
    std::cin >> n;
    std::vector<int> numbers(n), best(n, 1);
    for (int i = 0; i < n; i++) {
        std::cin >> numbers[i];
        for (int j = 0; j < i; j++)
            if (numbers[j] < numbers[i]) best[i] = std::max(best[i], best[j] + 1);
    }
    std::cout << *std::max_element(best.begin(), best.end()) << '\n';
}
