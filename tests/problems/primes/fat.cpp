// A number of its own for each pair.
#include <iostream>
#include <vector>

int main() {
    int n, count = 0;
    std::cin >> n;
    std::vector<std::vector<long long>> divisors(n + 1);
    for (int i = 2; i <= n; i++) {
        for (int j = 2 * i; j <= n; j += i) divisors[j].push_back(i);
        if (divisors[i].empty()) count++;
    }
    std::cout << count << '\n';
}
